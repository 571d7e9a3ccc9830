import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import pytest

from vlm.data import prepare as module
from vlm.data.datasets.base import DatasetSpec, Source
from vlm.data.prepare import Manifest, file_sha256, prepare
from vlm.data.sample import Dropped, Row, Sample
from vlm.errors import ConfigError, DataFormatError, UnknownNameError
from vlm.messages import Message


@dataclass(frozen=True)
class Options:
    seed: int = 1


def conversation(name: str, image: str, texts: tuple[str, ...], extra: dict[str, str] | None = None) -> Sample:
    messages = tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Sample(name, (Path(image),), messages, extra or {})


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
    spec = DatasetSpec(
        open=lambda options, places: Source(rows=lambda split: rows, locate=lambda name: picture.parent / name.name),
        options=Options(),
        splits=("train",),
        description="shapes",
        license="MIT",
        source="here",
        citation="nobody",
    )
    monkeypatch.setattr(module, "DATASETS", Datasets(shapes=spec))
    return rows


def test_prepared_folder_holds_rows_pictures_and_manifest(tmp_path: Path, picture: Path, shapes: list):
    prepared = prepare("shapes", tmp_path / "data")
    folder = tmp_path / "data" / "shapes"
    assert prepared.fresh and prepared.folder == folder
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "images/t/picture.png",
        "manifest.json",
        "samples-train.parquet",
    ]
    assert (folder / "images/t/picture.png").read_bytes() == picture.read_bytes()
    rows = pyarrow.parquet.read_table(folder / "samples-train.parquet").to_pylist()
    assert rows[0] == {
        "id": "a",
        "images": ["images/t/picture.png"],
        "messages": [{"role": "user", "text": "<image>\nwhat?"}, {"role": "assistant", "text": "this"}],
        "extra": '{"type": "open"}',
    }
    assert [row["id"] for row in rows] == ["a", "b"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dropped"] == {"train": {"no answer": ["c"], "image file missing in the source": ["d"]}}
    assert manifest["splits"]["train"] == {"file": "samples-train.parquet", "rows": 2, "sha256": file_sha256(folder / "samples-train.parquet")}
    assert {"format_version": 1, "name": "shapes", "license": "MIT", "options": {"seed": 1}}.items() <= manifest.items()
    assert Manifest.read(folder) == prepared.manifest


def test_prepared_data_is_found_and_not_written_again(tmp_path: Path, shapes: list):
    first = prepare("shapes", tmp_path)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    second = prepare("shapes", tmp_path)
    assert not second.fresh and second.manifest == first.manifest
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written


def test_other_options_need_overwrite(tmp_path: Path, shapes: list):
    prepare("shapes", tmp_path)
    with pytest.raises(ConfigError, match=r"prepared otherwise: .*'seed': 1.* wanted .*'seed': 2.*--overwrite"):
        prepare("shapes", tmp_path, options=Options(seed=2))
    assert prepare("shapes", tmp_path, options=Options(seed=2), overwrite=True).manifest.options == {"seed": 2}
    assert [path.name for path in tmp_path.glob("*shapes*")] == ["shapes"]


def test_a_folder_that_is_not_a_dataset_is_not_touched(tmp_path: Path, shapes: list):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exists already .* no manifest\.json"):
        prepare("shapes", tmp_path)
    assert (tmp_path / "shapes" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_interrupted_preparation_leaves_nothing(tmp_path: Path, shapes: list):
    shapes.append(Dropped("bad", "an answer is empty", "Turn 2 says nothing.", where="rows.json, row 5"))
    with pytest.raises(DataFormatError, match=r"rows\.json, row 5: Turn 2 says nothing\..*--on-bad-row skip"):
        prepare("shapes", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_split_without_usable_row_is_refused_with_reasons(tmp_path: Path, shapes: list):
    del shapes[:2]
    with pytest.raises(DataFormatError, match=r"no usable row .1 no answer; 1 image file missing"):
        prepare("shapes", tmp_path)


def test_image_name_cannot_lead_out_of_the_folder(tmp_path: Path, shapes: list):
    shapes[0] = dataclasses.replace(shapes[0], images=(Path("../picture.png"),))
    with pytest.raises(DataFormatError, match="leads out"):
        prepare("shapes", tmp_path)


def test_unwritable_place_is_one_line_with_path_and_remedy(tmp_path: Path, shapes: list):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Cannot write .*file/shapes .*--root-dir") as caught:
        prepare("shapes", tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, shapes: list, monkeypatch: pytest.MonkeyPatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        prepare("shapes", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 99}', '{"format_version": 1, "splits": 3}'])
def test_damaged_manifest_is_named(tmp_path: Path, text: str):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"manifest\.json"):
        Manifest.read(tmp_path)
