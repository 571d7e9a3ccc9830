import errno
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.manifest import Manifest, UsedArchive, file_sha256
from vlm.data.preparation import folder_builder
from vlm.data.preparation import prepare as module
from vlm.data.preparation.locks import locked
from vlm.data.preparation.prepare import needs, prepare
from vlm.data.sample import Dropped, Row, Sample
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.messages import Message

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    seed: int = 1
    sizes: tuple[int, ...] = (1, 2)


def conversation(name: str, image: str, texts: tuple[str, ...], extra: dict[str, str] | None = None) -> Sample:
    messages = tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Sample(name, (Path(image),), messages, extra or {})


def spec(**changed) -> DatasetSpec:
    return DatasetSpec(**({"options": Options(), "description": "shapes", "license": "MIT", "source": "here", "citation": "nobody"} | changed))


class Datasets(dict):
    def resolve(self, name: str) -> str:
        if name not in self:
            raise UnknownNameError("dataset", name, self)
        return name


@pytest.fixture
def shapes(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """A registered dataset `shapes` of two usable rows of one picture, a dropped one, and one whose picture is missing."""
    rows: list[Row] = [
        conversation("a", "t/picture.png", ("<image>\nwhat?", "this"), {"type": "open"}),
        conversation("b", "t/picture.png", ("what?<image>", "that", "why?", "so")),
        Dropped("c", "no answer"),
        conversation("d", "t/nowhere.png", ("<image>", "nothing")),
    ]
    source = Source(rows=lambda split: rows, locate=lambda name: picture.parent / name.name)
    monkeypatch.setattr(module, "DATASETS", Datasets(shapes=spec(open=lambda options, places: source)))
    return rows


def test_prepared_folder_holds_rows_pictures_and_manifest(tmp_path: Path, picture: Path, shapes: list):
    prepared = prepare("shapes", tmp_path / "data")
    folder = tmp_path / "data" / "shapes"
    assert prepared.fresh and prepared.folder == folder
    assert sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*") if path.is_file()) == [
        "shapes/images/t/picture.png",
        "shapes/manifest.json",
        "shapes/samples-train.parquet",
    ]
    assert (folder / "images/t/picture.png").read_bytes() == picture.read_bytes()
    assert not (folder / "images/t/picture.png").samefile(picture)  # a copy: whoever changes the source does not change the dataset
    rows = pyarrow.parquet.read_table(folder / "samples-train.parquet").to_pylist()
    assert rows[0] == {
        "id": "a",
        "images": ["images/t/picture.png"],
        "messages": [{"role": "user", "text": "<image>\nwhat?"}, {"role": "assistant", "text": "this"}],
        "extra": '{"type": "open"}',
        "sizes": [{"height": 10, "width": 20}],
    }
    assert [row["id"] for row in rows] == ["a", "b"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    missing = {"id": "d", "detail": "There is no image file t/nowhere.png."}
    assert manifest["dropped"] == {"train": {"no answer": [{"id": "c", "detail": ""}], "image file missing": [missing]}}
    sha256 = file_sha256(folder / "samples-train.parquet")
    assert manifest["splits"]["train"] == {"file": "samples-train.parquet", "rows": 2, "sha256": sha256, "images": 1, "duplicate_ids": 0}
    assert {"format_version": 2, "name": "shapes", "license": "MIT", "options": {"seed": 1, "sizes": [1, 2]}}.items() <= manifest.items()
    assert Manifest.read(folder) == prepared.manifest


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, shapes: list):
    first, second = (prepare("shapes", tmp_path / place).folder for place in ("here", "there"))
    for name in ("manifest.json", "samples-train.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_prepared_data_is_found_and_not_written_again(tmp_path: Path, shapes: list):
    first = prepare("shapes", tmp_path)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    second = prepare("shapes", tmp_path)
    assert not second.fresh and second.manifest == first.manifest
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written


def test_other_options_need_overwrite(tmp_path: Path, shapes: list):
    prepare("shapes", tmp_path)
    with pytest.raises(ConfigError, match=r"prepared with the options .*'seed': 1.* wanted .*'seed': 2.*--overwrite"):
        prepare("shapes", tmp_path, options=Options(seed=2))
    assert prepare("shapes", tmp_path, options=Options(seed=2), overwrite=True).manifest.options == {"seed": 2, "sizes": [1, 2]}
    assert [path.name for path in tmp_path.glob("*shapes*")] == ["shapes"]


def test_a_folder_that_is_not_a_dataset_is_not_touched(tmp_path: Path, shapes: list):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shapes was not written by vlm .* choose another --root-dir\.$"):
        prepare("shapes", tmp_path)
    assert (tmp_path / "shapes" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_faulty_row_of_a_registered_dataset_is_dropped_unless_it_shall_be_an_error(tmp_path: Path, shapes: list):
    shapes.append(Dropped("bad", "an answer is empty", "Turn 2 says nothing.", where="rows.json, row 5"))
    with pytest.raises(DataFormatError, match=r"^shapes train, row 4: There is no image file t/nowhere\.png\..*--on-bad-row skip"):
        prepare("shapes", tmp_path / "data", on_bad_row="error")
    del shapes[3]
    with pytest.raises(DataFormatError, match=r"rows\.json, row 5: Turn 2 says nothing\..*--on-bad-row skip"):
        prepare("shapes", tmp_path / "data", on_bad_row="error")
    assert list((tmp_path / "data").iterdir()) == []  # an interrupted preparation leaves nothing
    dropped = prepare("shapes", tmp_path / "data").manifest.dropped["train"]
    assert dropped["an answer is empty"] == [{"id": "bad", "detail": "Turn 2 says nothing."}]


def test_split_without_usable_row_is_refused_with_reasons(tmp_path: Path, shapes: list):
    del shapes[:2]
    with pytest.raises(DataFormatError, match=r"no usable row .1 no answer; 1 image file missing"):
        prepare("shapes", tmp_path)


def test_a_file_in_the_place_of_the_root_is_named(tmp_path: Path, shapes: list):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for root in ("file", "file/data"):
        with pytest.raises(ConfigError, match=rf"^--root-dir .*{root} cannot be a folder: .*/file is a file\. Give a folder"):
            prepare("shapes", tmp_path / root)
        with pytest.raises(ConfigError, match="is a file"):
            needs("shapes", tmp_path / root)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_root_that_cannot_be_written_is_blamed_and_not_the_source(tmp_path: Path, shapes: list, code: int, monkeypatch: pytest.MonkeyPatch):
    def refused(*arguments, **settings):
        raise OSError(code, os.strerror(code), str(tmp_path.resolve() / "data/.shapes.lock"))  # as filelock does, by the absolute path

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^Cannot write data/shapes \(.*\.shapes\.lock\)\. .*another folder with --root-dir\.$") as caught:
        prepare("shapes", Path("data"))
    assert "\n" not in str(caught.value)


def test_setting_without_effect_is_a_warning(tmp_path: Path, shapes: list, caplog: pytest.LogCaptureFixture):
    prepare("shapes", tmp_path, keep_archives=True)
    assert "--keep-archives have no effect" in caplog.text


def test_unknown_name_and_missing_path_are_told_apart(tmp_path: Path, shapes: list):
    with pytest.raises(UnknownNameError, match="Did you mean 'shapes'"):
        prepare("shape", tmp_path)
    with pytest.raises(ConfigError, match=r"no file or folder nowhere\.json"):
        prepare("nowhere.json", tmp_path)


def test_two_preparations_of_one_dataset_at_once_are_refused(tmp_path: Path, shapes: list):
    with locked([tmp_path / ".shapes.lock"], work="prepares shapes"), pytest.raises(ConfigError, match=r"Another process prepares shapes right now"):
        prepare("shapes", tmp_path)
    assert prepare("shapes", tmp_path).fresh


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, shapes: list):
    (tmp_path / ".shapes.tmp" / "images").mkdir(parents=True)
    (tmp_path / ".shapes.tmp" / "manifest.json").write_text("{}", encoding="utf-8")
    assert prepare("shapes", tmp_path).fresh
    assert not (tmp_path / ".shapes.tmp").exists()


def test_folder_that_was_put_aside_by_a_killed_process_comes_back(tmp_path: Path, shapes: list):
    prepare("shapes", tmp_path).folder.rename(tmp_path / ".shapes.old")
    assert not prepare("shapes", tmp_path).fresh
    assert not (tmp_path / ".shapes.old").exists()


@pytest.fixture
def zipped(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Datasets `left` and `right` that share the pictures of one archive, `both` that joins them; the answer is the folder of the archives."""
    given = tmp_path / "given"
    given.mkdir()
    with zipfile.ZipFile(given / "pictures.zip", "w") as archive:
        archive.write(picture, "deep/picture.png")
    (given / "left.json").write_text('["l1", "l2"]', encoding="utf-8")
    (given / "right.json").write_text('["r1"]', encoding="utf-8")

    def of(side: str) -> DatasetSpec:
        def rows(places) -> list[Row]:
            return [conversation(name, "p/picture.png", ("<image>", name)) for name in json.loads(places[f"{side}.json"].read_text())]

        return spec(
            archives=tuple(
                Archive(file=file, url=f"https://example.org/{file}", size=(given / file).stat().st_size) for file in (f"{side}.json", "pictures.zip")
            ),
            open=lambda options, places: Source(rows=lambda split: rows(places), locate=lambda name: places["pictures.zip"] / "deep" / name.name),
        )

    monkeypatch.setattr(module, "DATASETS", Datasets(left=of("left"), right=of("right"), both=spec(parts=("left", "right"))))
    return given


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_archives_are_fetched_extracted_linked_and_deleted(tmp_path: Path, zipped: Path):
    prepared = prepare("left", tmp_path / "data", mirror=str(zipped))
    assert files_of(tmp_path / "data") == {f"left/{name}" for name in ("images/p/picture.png", "manifest.json", "samples-train.parquet")}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["left"]
    size = (zipped / "pictures.zip").stat().st_size
    checksum = f"sha256:{file_sha256(zipped / 'pictures.zip')}"
    assert prepared.manifest.archives[1] == UsedArchive("pictures.zip", "https://example.org/pictures.zip", size, checksum)
    assert Manifest.read(prepared.folder).archives == prepared.manifest.archives


def test_kept_archives_share_their_pictures_with_the_dataset_and_are_used_again(tmp_path: Path, zipped: Path):
    data = tmp_path / "data"
    prepared = prepare("left", data, mirror=str(zipped), keep_archives=True)
    assert (prepared.folder / "images/p/picture.png").samefile(data / ".archives/pictures.zip.files/deep/picture.png")
    (zipped / "pictures.zip").unlink()
    (zipped / "left.json").unlink()
    prepare("right", data, mirror=str(zipped))
    assert {path.name for path in prepared.kept} == {"left.json", "pictures.zip", "pictures.zip.files"}
    assert all(path.exists() for path in prepared.kept)  # what was there before stays
    assert not (data / ".archives/right.json").exists()


def test_archives_that_the_user_gives_stay_as_they_are(tmp_path: Path, zipped: Path):
    before = {name: (zipped / name).read_bytes() for name in files_of(zipped)}
    prepared = prepare("left", tmp_path / "data", from_archives=zipped)
    assert {name: (zipped / name).read_bytes() for name in files_of(zipped)} == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["left"]
    assert (prepared.folder / "images/p/picture.png").is_file()


def test_archives_put_into_the_folder_by_hand_stay(tmp_path: Path, zipped: Path):
    zipped.rename(tmp_path / "archives-moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "archives-moved").rename(tmp_path / "data/.archives")
    prepare("left", tmp_path / "data")
    assert {"left.json", "right.json", "pictures.zip"} <= files_of(tmp_path / "data/.archives")
    assert not (tmp_path / "data/.archives/pictures.zip.files").exists()


def test_a_full_disk_is_not_blamed_on_the_picture_that_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "mine/a.png")
    (tmp_path / "mine/a.txt").write_text("A square", encoding="utf-8")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(source))  # as shutil does

    monkeypatch.setattr(folder_builder.shutil, "copyfile", full)
    with pytest.raises(ConfigError, match=r"Cannot write .*data/mine \(No space left on device\)\. .*free space there"):
        prepare(str(tmp_path / "mine"), tmp_path / "data")


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mine.json"
    path.write_text('[{"image": "a.png", "caption": "x"}]', encoding="utf-8")

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vlm.data.preparation.work.file_sha256", refused)  # the tests may run as root, whom no file refuses
    with pytest.raises(ConfigError, match=r"^Cannot read .*mine\.json \(Permission denied\)\. Make it readable, or give another path\.$"):
        prepare(str(path), tmp_path / "data")


def test_a_root_inside_the_users_folder_is_refused(tmp_path: Path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A square", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--root-dir .*data lies inside your data .* Give a folder beside your data\."):
        prepare(str(tmp_path), tmp_path / "data", name="mine")
    assert not (tmp_path / "data").exists()


def test_failed_preparation_keeps_downloads_and_the_next_one_deletes_them(tmp_path: Path, zipped: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patched:
        patched.setattr(folder_builder.os, "link", full)
        patched.setattr(folder_builder.shutil, "copyfile", full)
        with pytest.raises(ConfigError, match=r"Cannot write .*No space left on device") as caught:
            prepare("left", tmp_path / "data", mirror=str(zipped))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".archives"]
    assert (tmp_path / "data/.archives/pictures.zip").is_file()
    for name in files_of(zipped):
        (zipped / name).unlink()
    assert prepare("left", tmp_path / "data", mirror=str(zipped)).fresh
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["left"]


def test_disk_space_is_checked_before_the_first_byte(tmp_path: Path, zipped: Path, monkeypatch: pytest.MonkeyPatch):
    from vlm.data.archives import download

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(ConfigError, match=r"needs .* more, its disk has 100 bytes free"):
        prepare("left", tmp_path / "data", mirror=str(zipped))
    assert list((tmp_path / "data").iterdir()) == []


def test_needs_are_downloads_and_what_comes_out_of_them(tmp_path: Path, zipped: Path):
    rows, pictures = ((zipped / name).stat().st_size for name in ("left.json", "pictures.zip"))
    needed = needs("left", tmp_path / "data")
    assert [archive.file for archive in needed.downloads] == ["left.json", "pictures.zip"]
    assert (needed.download_bytes, needed.disk_bytes) == (rows + pictures, rows + 2 * pictures)
    assert [archive.file for archive in needs("both", tmp_path / "data").downloads] == ["left.json", "pictures.zip", "right.json"]
    assert needs("left", tmp_path / "data", from_archives=zipped).disk_bytes == pictures
    prepare("left", tmp_path / "data", from_archives=zipped)
    assert not needs("left", tmp_path / "data")


def test_mix_prepares_its_parts_and_sums_them(tmp_path: Path, zipped: Path):
    data = tmp_path / "data"
    left = prepare("left", data, from_archives=zipped)
    mix = prepare("both", data, mirror=str(zipped))
    assert mix.fresh and [(part.manifest.name, part.fresh) for part in mix.parts] == [("left", False), ("right", True)]
    assert mix.parts[0].manifest == left.manifest
    manifest = json.loads((data / "both/manifest.json").read_text(encoding="utf-8"))
    assert manifest["parts"] == ["left", "right"]
    assert manifest["splits"] == {"train": {"file": "", "rows": 3, "sha256": "", "images": 2, "duplicate_ids": 0}}
    assert Manifest.read(data / "both") == mix.manifest
    assert not prepare("both", data).fresh
    assert sorted(path.name for path in data.iterdir()) == ["both", "left", "right"]


def test_what_has_the_place_of_a_mix_is_refused_before_the_download(tmp_path: Path, zipped: Path):
    data = tmp_path / "data"
    prepare("left", data, from_archives=zipped).folder.rename(data / "both")
    with pytest.raises(ConfigError, match=r"both holds another dataset, left from here, and no mix; choose another --root-dir\.$"):
        prepare("both", data, mirror=str(zipped))
    assert [path.name for path in data.iterdir()] == ["both"]
    with pytest.raises(ConfigError, match="--name mine is for your own data"):
        prepare("both", data, name="mine")
    with pytest.raises(ConfigError, match="is a mix of left, right; set options"):
        prepare("both", tmp_path / "other", options=Options(seed=2))


def test_wrong_number_of_workers_is_refused_before_the_download(tmp_path: Path, zipped: Path):
    with pytest.raises(ConfigError, match="--workers is 0"):
        prepare("left", tmp_path / "data", mirror=str(zipped), workers=0)
    assert not (tmp_path / "data").exists()


def test_overwritten_mix_prepares_its_parts_anew(tmp_path: Path, zipped: Path):
    prepare("both", tmp_path / "data", mirror=str(zipped))
    (tmp_path / "data/left/samples-train.parquet").unlink()
    with pytest.raises(ConfigError, match="Add --overwrite"):
        prepare("both", tmp_path / "data", mirror=str(zipped))
    assert all(part.fresh for part in prepare("both", tmp_path / "data", mirror=str(zipped), overwrite=True).parts)


def own_json(folder: Path, *rows: dict) -> Path:
    path = folder / "mine.json"
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    path.write_text(json.dumps([{"conversations": turns} | row for row in rows]), encoding="utf-8")
    return path


def test_own_data_is_prepared_under_its_name_from_wherever_its_pictures_lie(tmp_path: Path, picture: Path):
    inner = tmp_path / "inner"
    inner.mkdir()
    Image.new("RGB", (9, 8)).save(inner / "in.png")
    path = own_json(inner, {"id": "in", "image": "in.png"}, {"id": "up", "image": "../picture.png"}, {"id": "absolute", "image": str(picture)})
    folder = prepare(str(path), tmp_path / "data").folder
    assert folder == tmp_path / "data" / "mine"
    rows = pyarrow.parquet.read_table(folder / "samples-train.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["in", "up", "absolute"]
    assert rows[0]["images"] == ["images/in.png"]
    assert [row["sizes"][0] for row in rows] == [{"height": 8, "width": 9}, *[{"height": 10, "width": 20}] * 2]
    for row in rows[1:]:
        assert (folder / row["images"][0]).read_bytes() == picture.read_bytes()
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["elsewhere", "in.png"]
    assert not prepare(str(path), tmp_path / "data").fresh
    assert prepare(str(path), tmp_path / "data", name="other").folder.name == "other"


def test_faulty_row_of_own_data_is_an_error_unless_it_shall_be_skipped(tmp_path: Path, picture: Path):
    path = own_json(tmp_path, {"id": "good", "image": "picture.png"}, {"id": "bad", "image": "nowhere.png"})
    with pytest.raises(DataFormatError, match=r"^mine\.json, row 2: There is no image file nowhere\.png\..*--on-bad-row skip"):
        prepare(str(path), tmp_path / "data")
    manifest = prepare(str(path), tmp_path / "data", on_bad_row="skip").manifest
    assert [row["id"] for row in manifest.dropped["train"]["image file missing"]] == ["bad"]


def test_changed_own_data_needs_overwrite(tmp_path: Path, picture: Path):
    prepare(str(own_json(tmp_path, {"id": "a", "image": "picture.png"})), tmp_path / "data")
    path = str(own_json(tmp_path, {"id": "b", "image": "picture.png"}))
    with pytest.raises(
        ConfigError, match=r"^The file .*mine\.json has changed since .*data/mine was prepared; add --overwrite to prepare it again, or"
    ):
        prepare(path, tmp_path / "data")
    assert prepare(path, tmp_path / "data", overwrite=True).fresh


def test_other_data_of_a_name_is_told_from_changed_data(tmp_path: Path, picture: Path):
    prepare(str(own_json(tmp_path, {"image": "picture.png"})), tmp_path / "data", name="chat")
    folder = pictures_with_texts(tmp_path / "chat")
    with pytest.raises(ConfigError, match=r"data/chat holds another dataset, chat from mine\.json; choose a name for yours with --name\.$"):
        prepare(str(folder), tmp_path / "data")
    assert prepare(str(folder), tmp_path / "data", name="other").fresh
    (folder / "a.txt").write_text("Another text", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^The files in .*chat/ have changed since .*data/other was prepared; add --overwrite"):
        prepare(str(folder), tmp_path / "data", name="other")


def pictures_with_texts(folder: Path) -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    (folder / "a.txt").write_text("A square", encoding="utf-8")
    return folder


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_users_originals_are_never_replaced(tmp_path: Path, zipped: Path, overwrite: bool):
    mine, other = pictures_with_texts(tmp_path / "x/mine"), pictures_with_texts(tmp_path / "x/other")
    inside = pictures_with_texts(tmp_path / "x/outer/inner")
    for registered in ("both", "left"):
        pictures_with_texts(tmp_path / "x" / registered)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    before = files_of(tmp_path / "x")
    for source, root, name in (
        (mine, "x", ""),
        (other, "x", "mine"),
        (inside, "x", "outer"),
        (mine, "link", ""),
        (tmp_path / "link/mine", "x", ""),
        ("both", "x", ""),
        ("left", "x", ""),
    ):
        with pytest.raises(ConfigError, match="choose another --root-dir") as caught:
            prepare(str(source), tmp_path / root, name=name, overwrite=overwrite, **({"mirror": str(zipped)} if source in ("both", "left") else {}))
        assert "--overwrite" not in str(caught.value)
        assert files_of(tmp_path / "x") == before


def test_archives_of_the_user_are_not_replaced_with_a_dataset(tmp_path: Path, zipped: Path):
    folder = prepare("left", tmp_path / "data", mirror=str(zipped)).folder
    zipped.rename(folder / "archives")
    with pytest.raises(ConfigError, match=r"left/archives is read and would be deleted when .*left is written; choose another --root-dir\.$"):
        prepare("left", tmp_path / "data", from_archives=folder / "archives", overwrite=True)


def test_names_that_are_taken_or_impossible_are_refused(tmp_path: Path, picture: Path):
    path = str(own_json(tmp_path, {"id": "a", "image": "picture.png"}))
    with pytest.raises(ConfigError, match=r"'easy-vqa' is the name of a registered dataset.*--name"):
        prepare(path, tmp_path / "data", name="easy-vqa")
    with pytest.raises(ConfigError, match=r"'\.\./up' cannot name.*--name"):
        prepare(path, tmp_path / "data", name="../up")
    with pytest.raises(ConfigError, match=r"--name mine is for your own data"):
        prepare("easy-vqa", tmp_path / "data", name="mine")
    folder = prepare(path, tmp_path / "data").folder
    with pytest.raises(ConfigError, match="prepared dataset already"):
        prepare(str(folder), tmp_path / "data")


ENDLESS = """
import sys, time
from pathlib import Path
from vlm.data.preparation.prepare import prepare

def slowly(items, description):
    for i, item in enumerate(items):
        yield item
        if i == 1:
            print("half", flush=True)
            time.sleep(60)

prepare(sys.argv[1], Path(sys.argv[2]), progress=slowly)
"""


def test_killed_preparation_is_no_finished_one_and_starts_again(tmp_path: Path, picture: Path):
    rows = [{"id": str(i), "image": "picture.png"} for i in range(3)]
    path, data = own_json(tmp_path, *rows), tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path), str(data)], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and process.stdout.readline() == b"half\n"
    with pytest.raises(ConfigError, match="Another process prepares mine"):
        prepare(str(path), data)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert (data / ".mine.tmp").is_dir() and not (data / "mine").exists()
    prepared = prepare(str(path), data)
    assert prepared.fresh and prepared.manifest.splits["train"].rows == 3
    assert [path.name for path in data.iterdir()] == ["mine"]
