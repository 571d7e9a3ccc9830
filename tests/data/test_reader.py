import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlm.data.manifest import Manifest, SplitFile, file_sha256
from vlm.data.reader import open_dataset
from vlm.data.rows import write_parquet
from vlm.data.sample import Sample
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.messages import Message


def samples(prefix: str, count: int) -> list[Sample]:
    messages = (Message("user", "<image>\nwhat?"), Message("assistant", "日本"))
    return [Sample(f"{prefix}{i}", (Path(f"images/{i}.png"),), messages, {"type": "open"} if i else {}) for i in range(count)]


def prepared(root: Path, name: str, **splits: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    files = {}
    for split, count in splits.items():
        path = folder / f"samples-{split}.parquet"
        write_parquet(samples(f"{split}/", count), path)
        files[split] = SplitFile(path.name, count, file_sha256(path))
    Manifest(name, files, [], "MIT", "", {}, {}).write(folder)
    return folder


def llava(path: Path, count: int) -> Path:
    row = {"image": "x/y.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]}
    path.write_text(json.dumps([row | {"id": f"j{i}"} for i in range(count)]), encoding="utf-8")
    return path


def test_name_opens_train_and_at_picks_a_split(tmp_path: Path):
    prepared(tmp_path, "shapes", train=3, test=2)
    train, test = open_dataset("shapes", data_root=tmp_path), open_dataset("shapes@test", data_root=tmp_path)
    assert (len(train), len(test)) == (3, 2)
    assert train[1] == Sample("train/1", (tmp_path / "shapes/images/1.png",), samples("", 1)[0].messages, {"type": "open"})
    assert [sample.id for sample in test] == ["test/0", "test/1"]
    assert train[-1].id == "train/2"


def test_the_only_split_needs_no_name(tmp_path: Path):
    prepared(tmp_path, "questions", test=2)
    assert open_dataset("questions", data_root=tmp_path)[0].id == "test/0"


def test_path_of_a_prepared_folder_opens(tmp_path: Path):
    folder = prepared(tmp_path / "elsewhere", "shapes", train=1, test=2)
    assert len(open_dataset(str(folder), data_root=tmp_path)) == 1
    assert len(open_dataset(f"{folder}@test", data_root=tmp_path)) == 2


def test_llava_file_opens_with_images_beside_it(tmp_path: Path):
    assert open_dataset(str(llava(tmp_path / "my.json", 2)), data_root=tmp_path)[1].images == (tmp_path / "x/y.png",)


def test_commas_concatenate(tmp_path: Path):
    prepared(tmp_path, "shapes", train=3)
    joined = open_dataset(f"shapes, {llava(tmp_path / 'my.json', 2)}", data_root=tmp_path)
    assert [sample.id for sample in joined] == ["train/0", "train/1", "train/2", "j0", "j1"]
    assert joined.sizes == (3, 2)
    assert [joined.source_of(i) for i in range(5)] == [0, 0, 0, 1, 1]
    with pytest.raises(IndexError):
        joined[5]


def test_amounts_belong_to_the_mixture_not_to_the_name(tmp_path: Path):
    prepared(tmp_path, "shapes", train=3)
    opened = open_dataset(f"shapes:0.25,{llava(tmp_path / 'my.json', 2)}:0.75", data_root=tmp_path)
    assert [(entry.name, entry.share) for entry in opened.entries] == [("shapes", 0.25), (str(tmp_path / "my.json"), 0.75)]


def test_a_mix_opens_its_parts_one_after_the_other_as_one_source(tmp_path: Path):
    for name in ("one", "two"):
        prepared(tmp_path, name, train=2)
    both = Manifest.read(tmp_path / "one")
    (tmp_path / "both").mkdir()
    replace(both, name="both", parts=["one", "two"], splits={"train": SplitFile("", 4, "")}).write(tmp_path / "both")
    opened = open_dataset("both", data_root=tmp_path)
    assert len(opened) == 4 and opened.sizes == (4,)
    assert {opened.source_of(i) for i in range(4)} == {0}
    assert [sample.images[0].parts[-3] for sample in opened] == ["one", "one", "two", "two"]


def test_faulty_rows_of_own_data_are_an_error_or_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = llava(tmp_path / "my.json", 2)
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows.insert(1, {"id": "mute", "conversations": [{"from": "human", "value": "Hello?"}]})
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"my\.json, row 2: the answer is missing.*--stage.on-bad-row skip"):
        open_dataset(str(path), data_root=tmp_path)
    for _ in range(2):  # read, and found in the cache
        caplog.clear()
        assert [sample.id for sample in open_dataset(str(path), data_root=tmp_path, on_bad_row="skip")] == ["j0", "j1"]
        assert "1 row(s) left out: the answer is missing (mute)" in caplog.text


def test_changed_file_is_read_again(tmp_path: Path):
    path = llava(tmp_path / "my.json", 2)
    assert len(open_dataset(str(path), data_root=tmp_path)) == 2
    assert len(open_dataset(str(llava(path, 3)), data_root=tmp_path)) == 3


def test_rows_that_are_not_the_manifests_are_refused(tmp_path: Path):
    folder = prepared(tmp_path, "shapes", train=3)
    write_parquet(samples("other/", 3), folder / "samples-train.parquet")
    with pytest.raises(DataFormatError, match="its manifest says"):
        open_dataset("shapes", data_root=tmp_path)


def test_unprepared_dataset_gives_the_command(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Run: vlm preprocess --dataset-id easy-vqa --root-dir '.*/my data'$"):
        open_dataset("easy-vqa@test", data_root=tmp_path / "my data")


def test_unknown_name_gives_the_nearest_prepared_and_registered_names(tmp_path: Path):
    prepared(tmp_path, "shapes", train=1)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'shapes'.*`vlm list`"):
        open_dataset("shape", data_root=tmp_path)
    with pytest.raises(UnknownNameError, match=r"split of the dataset 'shapes' named 'val'.*train"):
        open_dataset("shapes@val", data_root=tmp_path)


@pytest.mark.parametrize("name", ["nowhere/shapes", "nowhere.json"])
def test_missing_path_is_named(tmp_path: Path, name: str):
    with pytest.raises(DataFormatError, match="nowhere"):
        open_dataset(str(tmp_path / name), data_root=tmp_path)


def test_empty_dataset_is_refused(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"my\.json has no row"):
        open_dataset(str(llava(tmp_path / "my.json", 0)), data_root=tmp_path)
    with pytest.raises(ConfigError, match="No dataset is named"):
        open_dataset(" , ", data_root=tmp_path)


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="VLM_CACHE"):
        open_dataset(str(llava(tmp_path / "my.json", 1)), data_root=tmp_path)


def test_a_prepared_dataset_goes_before_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepared(tmp_path / "data", "mine", train=3)
    raw = tmp_path / "mine"
    raw.mkdir()
    llava(raw / "list.json", 1)
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("mine", data_root=Path("data"))) == 3
    assert open_dataset("mine/list.json", data_root=Path("data"))[0].id == "j0"


def test_data_of_ones_own_has_no_splits(tmp_path: Path):
    path = llava(tmp_path / "my.json", 1)
    with pytest.raises(ConfigError, match=r"my\.json is data of your own, which has no split 'val'"):
        open_dataset(f"{path}@val", data_root=tmp_path)
