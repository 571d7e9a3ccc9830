import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from vlm.data.manifest import Manifest, SplitFile, file_sha256, tree_sha256
from vlm.data.preparation.check import Report, Spread, check
from vlm.data.rows import write_parquet
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message


def sample(name: str, *images: str, answer: str = "this", **changed) -> Sample:
    messages = (Message("user", "<image>" * len(images) + "what?"), Message("assistant", answer))
    return Sample(name, tuple(Path("images") / image for image in images), **({"messages": messages} | changed))


def prepared(folder: Path, samples: list[Sample], **pictures: tuple[int, int]) -> Path:
    """A prepared folder of these samples, with pictures of random pixels and of this width and height."""
    (folder / "images").mkdir(parents=True)
    for name, size in pictures.items():
        Image.effect_noise(size, 90).save(folder / "images" / f"{name}.png")
    write_parquet(samples, folder / "samples-train.parquet")
    entry = SplitFile("samples-train.parquet", len(samples), file_sha256(folder / "samples-train.parquet"))
    Manifest(folder.name, {"train": entry}, [], "", "", {}, {}, images_sha256=tree_sha256(folder / "images")).write(folder)
    return folder


def found(path: Path, **settings) -> dict[tuple[str, str], int]:
    (report,) = check(path, workers=1, **settings)
    return {(finding.level, finding.kind): finding.count for finding in report.findings}


def only(path: Path, **settings) -> Report:
    (report,) = check(path, workers=1, **settings)
    return report


def test_sound_folder_has_no_finding_and_numbers(tmp_path: Path):
    folder = prepared(tmp_path / "shapes", [sample("a", "a.png", "b.png", sizes=((10, 20), (9, 9))), sample("c")], a=(20, 10), b=(9, 9))
    report = only(folder)
    assert report.ok and report.findings == [] and report.name == "shapes"
    numbers = report.splits["train"]
    assert (numbers.rows, numbers.images) == (2, 2)
    assert numbers.spreads["images"] == Spread(min=0, median=0, mean=1.0, p99=2, max=2)
    assert numbers.spreads["characters"] == Spread(min=9, median=9, mean=16.0, p99=23, max=23)
    assert numbers.spreads["turns"].max == 2


def test_missing_corrupt_and_exchanged_pictures_are_errors(tmp_path: Path):
    samples = [sample("1", "a.png"), sample("2", "b.png"), sample("3", "c.png", sizes=((9, 9),)), sample("4", "a.png")]
    folder = prepared(tmp_path / "shapes", samples, a=(9, 9), b=(9, 9), c=(9, 9))
    (folder / "images/a.png").unlink()
    (folder / "images/b.png").write_bytes(b"no picture")
    Image.new("RGB", (10, 9)).save(folder / "images/c.png")
    report = only(folder)
    assert not report.ok
    assert found(folder) == {
        ("error", "image file missing"): 1,  # once, though two rows use it
        ("error", "image file unreadable"): 1,
        ("error", "picture of another size than its row says"): 1,
        ("warning", "pictures are not those of the manifest"): 1,
        ("warning", "row that is the same as another"): 1,
    }
    examples = {finding.kind: finding.examples for finding in report.findings}
    assert examples["image file missing"] == ["train: 1: There is no image file images/a.png."]  # the first of two rows
    assert examples["image file unreadable"][0].startswith("train: 2: ")
    assert examples["picture of another size than its row says"] == ["images/c.png is 10x9 pixels, 9x9 pixels in 3"]


def test_truncated_picture_is_found_by_decoding_only(tmp_path: Path):
    folder = prepared(tmp_path / "shapes", [sample("1", "a.png")], a=(64, 64))
    data = (folder / "images/a.png").read_bytes()
    (folder / "images/a.png").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert ("error", "image file unreadable") in found(folder)
    assert found(folder, verify="header") == {}


def test_turns_and_empty_answers_are_errors(tmp_path: Path):
    turns = (Message("user", "what?"), Message("user", "what?"), Message("assistant", "this"))
    samples = [sample("1", answer=" "), sample("2", messages=turns), sample("3", messages=turns[:1]), sample("4")]
    assert found(prepared(tmp_path / "shapes", samples)) == {
        ("error", "an answer is empty"): 1,
        ("error", "roles do not alternate"): 1,
        ("error", "the answer is missing"): 1,
    }


def test_placeholders_that_are_not_the_images_are_errors(tmp_path: Path):
    folder = prepared(tmp_path / "shapes", [sample("1", "a.png"), sample("2")], a=(9, 9))
    table = pyarrow.parquet.read_table(folder / "samples-train.parquet")
    images = pyarrow.array([[], ["images/a.png"]], type=table.schema.field("images").type)
    pyarrow.parquet.write_table(table.set_column(1, "images", images), folder / "samples-train.parquet")
    report = only(folder)
    counts = {finding.kind: finding.count for finding in report.findings}
    assert counts == {"placeholders and images differ": 2, "rows are not those of the manifest": 1, "file that no row uses": 1}
    (finding,) = [finding for finding in report.findings if finding.kind.startswith("placeholders")]
    assert finding.examples[0].startswith("samples-train.parquet, row 1: Sample '1' has 1 <image> placeholder(s)")


def test_file_that_is_no_parquet_is_an_error_among_others(tmp_path: Path):
    folder = prepared(tmp_path / "shapes", [sample("1", "a.png")], a=(9, 9))
    (folder / "samples-train.parquet").write_bytes(b"nothing")
    assert ("error", "rows cannot be read") in found(folder) and ("error", "rows are not those of the manifest") in found(folder)


def test_several_captions_of_one_picture_are_no_duplicates(tmp_path: Path):
    samples = [sample(str(number), "a.png", answer=f"caption {number}") for number in range(5)]
    assert only(prepared(tmp_path / "shapes", samples, a=(9, 9))).findings == []


def test_duplicates_are_warnings(tmp_path: Path):
    samples = [sample("1", "a.png"), sample("1", "b.png"), sample("3", "a.png", answer="that"), sample("4"), sample("5")]
    folder = prepared(tmp_path / "shapes", samples, a=(9, 9))
    shutil.copyfile(folder / "images/a.png", folder / "images/b.png")
    manifest = Manifest.read(folder)
    replace(manifest, images_sha256=tree_sha256(folder / "images")).write(folder)
    report = only(folder)
    assert report.ok
    assert {finding.kind: (finding.count, finding.examples) for finding in report.findings} == {
        "id of another row": (1, ["train: 1"]),
        "picture file with the same bytes as another": (1, ["images/b.png, as images/a.png"]),
        "row that is the same as another": (2, ["train: 1, as 1", "train: 5, as 4"]),
    }


def test_odd_pictures_and_leftovers_are_warnings(tmp_path: Path):
    samples = [sample("1", "thin.png"), sample("2", "tiny.png"), sample("3", "edge.png")]
    folder = prepared(tmp_path / "shapes", samples, thin=(101, 10), tiny=(7, 9), edge=(80, 8), unused=(9, 9))
    assert found(folder) == {
        ("warning", "file that no row uses"): 1,
        ("warning", "picture longer than 10 times its width or height"): 1,
        ("warning", "picture of less than 8 pixels"): 1,
    }


def test_only_the_first_examples_are_kept(tmp_path: Path):
    (finding,) = only(prepared(tmp_path / "shapes", [sample(str(i), answer="") for i in range(30)])).findings[:1]
    assert (finding.kind, finding.count, len(finding.examples)) == ("an answer is empty", 30, 5)


def test_parts_of_a_mix_are_checked(tmp_path: Path):
    prepared(tmp_path / "left", [sample("1")])
    prepared(tmp_path / "right", [sample("2", answer="")])
    (tmp_path / "both").mkdir()
    Manifest("both", {"train": SplitFile("", 2, "")}, [], "", "", {}, {}, parts=["left", "right"]).write(tmp_path / "both")
    assert [(report.name, report.ok) for report in check(tmp_path / "both", workers=1)] == [("left", True), ("right", False)]


def test_own_data_is_checked_where_it_lies(tmp_path: Path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    rows = [
        {"id": "1", "image": "a.png", "conversations": turns},
        {"id": "2", "image": "no.png", "conversations": turns},
        {"id": "3", "conversations": turns},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    report = only(path)
    assert not report.ok and report.splits["train"].rows == 2
    assert sum(finding.count for finding in report.findings if finding.level == "error") == 2
    assert ["mine.json: 2: There is no image file no.png."] in [finding.examples for finding in report.findings]
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["a.png", "mine.json"]


def test_path_without_data_is_named(tmp_path: Path):
    with pytest.raises(DataFormatError, match=r"There is no file or folder .*nowhere"):
        check(tmp_path / "nowhere")
