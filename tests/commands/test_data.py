import json
from pathlib import Path

import pytest
from PIL import Image

from vlm.__main__ import main as vlm
from vlm.commands.data import main
from vlm.data.preparation.prepare import prepare
from vlm.errors import ConfigError, DataFormatError, UnknownNameError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 5)).save(tmp_path / "b.png")
    return tmp_path / "mine.json"


def write(path: Path, *rows: dict) -> str:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    path.write_text(json.dumps([{"id": str(i), "conversations": turns} | row for i, row in enumerate(rows)]), encoding="utf-8")
    return str(path)


def test_warnings_end_with_code_0_and_say_what_and_where(own: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", write(own, {"image": "a.png"}, {"image": "b.png"})]) == 0
    said = capsys.readouterr().out
    for words in (
        "train: 2 conversations, 2 pictures",
        "warning: 1 x picture of less than 8 pixels",
        "b.png is 9x5 pixels",
        "characters a conversation",
        "0 kind(s) of error",
    ):
        assert words in said


def test_errors_end_with_code_1_and_are_written_as_json(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "findings.json"
    assert main(["check", write(own, {"image": "a.png"}, {"image": "no.png"}), "--json", str(file), "--verify", "header", "--workers", "1"]) == 1
    assert "error: 1 x image file missing\n    mine.json: 1: There is no image file no.png.\n" in capsys.readouterr().out
    (report,) = json.loads(file.read_text(encoding="utf-8"))
    assert report["ok"] is False and report["splits"]["train"]["rows"] == 2
    missing = {"level": "error", "kind": "image file missing", "count": 1, "examples": ["mine.json: 1: There is no image file no.png."]}
    assert missing in report["findings"]


def test_a_dataset_is_found_by_its_name_below_the_data_root(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "data"
    prepare(write(own, {"image": "a.png"}), root)
    assert main(["check", "mine", "--data-root", str(root)]) == 0
    assert capsys.readouterr().out.startswith(f"{root}/mine\n")
    with pytest.raises(DataFormatError, match=r"no file or folder mine, and no data/mine\. .*--data-root"):
        main(["check", "mine"])
    with pytest.raises(
        DataFormatError, match=r"no file or folder easy-vqa, and no .*data/easy-vqa\. Prepare it with: vlm preprocess --dataset-id easy-vqa"
    ):
        main(["check", "easy-vqa", "--data-root", str(root)])


def test_own_data_is_named_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    write(own, {"image": "a.png"})
    monkeypatch.chdir(tmp_path)
    assert main(["check", "mine.json"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "mine.json"


def test_file_that_cannot_be_written_is_one_line(own: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Cannot write .*--json"):
        main(["check", write(own, {"image": "a.png"}), "--json", str(tmp_path / "nowhere" / "findings.json")])


def test_exit_code_passes_through_the_vlm_command(own: Path):
    assert vlm(["data", "check", write(own, {"image": "no.png"})]) == 1
    assert vlm(["data", "check", str(own) + ".gone"]) == 2


def test_help_names_the_subcommands_and_a_typo_gets_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main([]) == main(["--help"]) == 0
    assert "check" in capsys.readouterr().out
    with pytest.raises(UnknownNameError, match=r"'chek'. Did you mean 'check'"):
        main(["chek"])


def test_show_is_handed_its_arguments(monkeypatch: pytest.MonkeyPatch):
    from vlm.commands import data_show

    seen: list[list[str]] = []
    monkeypatch.setattr(data_show, "main", lambda argv: seen.append(list(argv)))
    assert main(["show", "data/shapes", "--preset", "tiny/align", "-n", "8"]) == 0
    assert seen == [["data/shapes", "--preset", "tiny/align", "-n", "8"]]
