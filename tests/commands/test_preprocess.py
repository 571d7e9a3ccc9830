import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vlm.commands.preprocess import Arguments, in_one_line, main, run
from vlm.data.datasets.base import Archive, DatasetSpec, Source
from vlm.data.preparation import prepare as prepare_module
from vlm.data.sample import Dropped, Sample
from vlm.errors import ConfigError, UnknownNameError
from vlm.messages import Message

ROOT = Path(__file__).parents[2]


def test_what_was_written_is_said_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--dataset-id", "easy-vqa-captions", "--root-dir", str(tmp_path)])
    said = capsys.readouterr().out
    dropped = "1,565 dropped: color or shape not among the answers"
    for words in (
        "prepared in",
        "2,435 conversations, 2,435 pictures",
        dropped,
        "train/",
        "603",
        "MIT",
        f"vlm data check {tmp_path}",
        "vlm data show",
        "# or the preset that you will train",
    ):
        assert words in said
    main(["--dataset_id", "easy-vqa-captions", "--root_dir", str(tmp_path)])
    assert "already prepared" in capsys.readouterr().out


def test_script_is_the_command(tmp_path: Path):
    script = [sys.executable, str(ROOT / "scripts" / "preprocess.py"), "--dataset_id", "easy-vqa-capt", "--root_dir", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("vlm preprocess: No dataset named 'easy-vqa-capt'. Did you mean 'easy-vqa-captions'")


def test_options_of_the_dataset_are_set_and_checked(tmp_path: Path):
    main(
        ["--dataset-id", "easy-vqa-captions", "--root-dir", str(tmp_path), "--option", "seed=3", "--option", "max_questions=1", "--verify", "header"]
    )
    manifest = json.loads((tmp_path / "easy-vqa-captions/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["options"], manifest["verified"]) == ({"seed": 3, "max_questions": 1}, "header")
    with pytest.raises(UnknownNameError, match=r"named 'sed'. Did you mean 'seed'"):
        main(["--dataset-id", "easy-vqa", "--root-dir", str(tmp_path), "--option", "sed=3"])
    with pytest.raises(UnknownNameError, match="No dataset named 'nowhere'"):
        main(["--dataset-id", "nowhere", "--root-dir", str(tmp_path), "--option", "seed=3"])


def test_own_data_is_prepared_with_faulty_rows_left_out_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    rows = [{"id": str(i), "image": image, "conversations": turns} for i, image in enumerate(("a.png", "no.png", "no.png", "no2.png"))]
    (tmp_path / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    data = ["--dataset-id", str(tmp_path / "mine.json"), "--root-dir", str(tmp_path / "data"), "--name", "shapes"]
    main([*data, "--on-bad-row", "skip"])
    said = capsys.readouterr().out
    assert "3 dropped: image file missing\n" in said and said.count("There is no image file no.png.") == 2 and "no2.png" not in said
    assert (tmp_path / "data/shapes/manifest.json").is_file()
    with pytest.raises(ConfigError, match="--option is for registered datasets"):
        main([*data, "--option", "seed=3"])


def test_ids_and_names_with_line_breaks_stay_on_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    rows = [{"id": id, "image": image, "conversations": turns} for id, image in (("good", "a.png"), ("two\nlines", "\x1b[2Jno\n.png"))]
    (tmp_path / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    main(["--dataset-id", str(tmp_path / "mine.json"), "--root-dir", str(tmp_path / "data"), "--on-bad-row", "skip"])
    assert "two\\nlines: There is no image file \\x1b[2Jno\\n.png.\n" in capsys.readouterr().out


def test_one_line_is_enough_for_a_command_that_prepares_on_its_way(tmp_path: Path):
    prepared = run(Arguments("easy-vqa-captions", root_dir=tmp_path))
    folder = tmp_path / "easy-vqa-captions"
    assert in_one_line(prepared) == f"easy-vqa-captions: prepared in {folder}: train 2,435, test 603 conversations, 1,962 dropped"


@pytest.fixture
def zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered dataset `shapes` of one archive; the answer is the archive's folder."""
    given = tmp_path / "given"
    given.mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with zipfile.ZipFile(given / "shapes.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    rows = [Sample("1", (Path("a.png"),), (Message("user", "<image>"), Message("assistant", "this"))), Dropped("2", "no answer")]
    spec = DatasetSpec(
        open=lambda options, places: Source(rows=lambda split: rows, locate=lambda name: places["shapes.zip"] / name),
        archives=(Archive(file="shapes.zip", url="https://example.org/shapes.zip", size=(given / "shapes.zip").stat().st_size),),
        description="shapes",
        license="CC0",
        source="here",
        citation="nobody",
    )

    class Datasets(dict):
        resolve = staticmethod(lambda name: name)

    monkeypatch.setattr(prepare_module, "DATASETS", Datasets(shapes=spec))
    return given


def test_downloads_are_said_before_they_begin_and_kept_archives_after(tmp_path: Path, zipped: Path, capsys: pytest.CaptureFixture[str]):
    data = ["--dataset-id", "shapes", "--root-dir", str(tmp_path / "data")]
    main([*data, "--mirror", str(zipped), "--keep-archives"])
    said = capsys.readouterr().out
    size = (zipped / "shapes.zip").stat().st_size
    for words in (
        f"{size} bytes  {zipped}/shapes.zip",
        f"to download: 1 file(s), {size} bytes; to extract: 1 archive(s); disk: {2 * size} bytes in all",
        "kept     2 archive(s)",
    ):
        assert words in said
    assert said.index("to download") < said.index("shapes: prepared")
    main([*data, "--from-archives", str(zipped), "--overwrite"])
    assert "to download" not in capsys.readouterr().out


def test_sizes_that_nobody_states_are_not_said_to_be_nothing(tmp_path: Path, zipped: Path, capsys: pytest.CaptureFixture[str]):
    spec = prepare_module.DATASETS["shapes"]
    prepare_module.DATASETS["shapes"] = replace(spec, archives=(replace(spec.archives[0], size=0),))
    main(["--dataset-id", "shapes", "--root-dir", str(tmp_path / "data"), "--mirror", str(zipped)])
    said = capsys.readouterr().out
    assert "to download: 1 file(s), 0 bytes and 1 of unknown size; to extract: 1 archive(s); disk: 0 bytes and what is not known, " in said
