import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm.data.formats import FORMATS
from vlm.data.formats.cauldron import read_cauldron
from vlm.data.sample import Dropped, Row, Sample
from vlm.errors import DataFormatError
from vlm.messages import Message

PAIR = {"user": "What?", "assistant": "A dog.", "source": "VQAv2"}
MORE = {"user": "Why?", "assistant": "Because.", "source": "VQAv2"}


def picture(color: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(file, kind)
    return file.getvalue()


def parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("images", pa.list_(image)), ("texts", pa.list_(text))])), path)
    return path


def read_json(tmp_path: Path, *rows: object) -> list[Row]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(FORMATS["cauldron"].read(path))


def test_pictures_are_written_once_as_they_are_under_the_hash_of_their_bytes(tmp_path: Path):
    red, blue = picture("red"), picture("blue", "JPEG")
    rows = [
        {"images": [{"bytes": red, "path": None}, {"bytes": blue, "path": "x.jpg"}], "texts": [PAIR, MORE]},
        {"images": [{"bytes": red, "path": None}], "texts": [PAIR]},
    ]
    two, one = read_cauldron(parquet(tmp_path / "a.parquet", rows), pictures=tmp_path / "pictures")
    assert isinstance(two, Sample) and isinstance(one, Sample)
    assert [(tmp_path / "pictures" / name).read_bytes() for name in two.images] == [red, blue]
    assert [name.suffix for name in two.images] == [".png", ".jpg"]
    assert all(name.stem == hashlib.sha256(data).hexdigest()[:32] for name, data in zip(two.images, (red, blue), strict=True))
    assert one.images == two.images[:1]
    assert len([file for file in (tmp_path / "pictures").rglob("*") if file.is_file()]) == 2


def test_questions_are_turns_with_the_pictures_before_the_first(tmp_path: Path):
    (sample,) = read_json(tmp_path, {"images": ["a.jpg", "b.jpg"], "texts": [PAIR, MORE]})
    assert sample == Sample(
        "1",
        (Path("a.jpg"), Path("b.jpg")),
        (Message("user", "<image><image>\nWhat?"), Message("assistant", "A dog."), Message("user", "Why?"), Message("assistant", "Because.")),
        {"source": "VQAv2"},
    )


def test_texts_may_say_where_the_pictures_stand(tmp_path: Path):
    (sample,) = read_json(tmp_path, {"images": ["a.jpg"], "texts": [MORE, {"user": "Is <image> it?", "assistant": "Yes."}]})
    assert isinstance(sample, Sample)
    assert [message.text for message in sample.messages] == ["Why?", "Because.", "Is <image> it?", "Yes."]


def test_a_row_may_have_no_picture(tmp_path: Path):
    (sample,) = read_json(tmp_path, {"images": [], "texts": [PAIR]})
    assert isinstance(sample, Sample) and sample.messages[0].text == "What?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": ["a.jpg"]}, "the list 'texts' is missing"),
        ({"images": ["a.jpg"], "texts": []}, "the answer is missing"),
        ({"images": ["a.jpg"], "texts": ["What?"]}, "a text is not a question with its answer"),
        ({"images": ["a.jpg"], "texts": [{"user": "What?"}]}, "'assistant' is not a text"),
        ({"images": ["a.jpg"], "texts": [{"user": "What?", "assistant": " "}]}, "an answer is empty"),
        ({"images": ["a.jpg"], "texts": [{"user": "<image> <image>", "assistant": "x"}]}, "placeholders and images differ"),
        ({"images": ["a.jpg"] * 3, "texts": [{"user": "<image> <image>", "assistant": "x"}]}, "placeholders and images differ"),
        ({"images": [3], "texts": [PAIR]}, "an image is not a path"),
        ({"images": ["http://a.b/c.jpg"], "texts": [PAIR]}, "an image is a URL"),
        ({"images": ["a.jpg"], "texts": [{**PAIR, "source": 3}]}, "'source' is not a text"),
    ],
)
def test_a_faulty_row_is_dropped(tmp_path: Path, row: object, reason: str):
    (dropped,) = read_json(tmp_path, row)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{tmp_path / 'data.json'}, row 1")


def test_an_empty_picture_drops_its_row_with_file_and_number(tmp_path: Path):
    rows = [{"images": [{"bytes": picture("red")}], "texts": [PAIR]}, {"images": [{"bytes": b""}], "texts": [PAIR]}]
    path = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    good, dropped = read_cauldron(tmp_path / "data", pictures=tmp_path / "pictures")
    assert isinstance(good, Sample) and good.id == "train-00000-of-00001/1"
    assert dropped == Dropped("train-00000-of-00001/2", "a picture is empty", "a picture is empty: it has no bytes.", f"{path}, row 2")


def test_a_folder_of_several_splits_is_refused(tmp_path: Path):
    for split in ("train", "test"):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [{"images": [], "texts": [PAIR]}])
    with pytest.raises(DataFormatError, match="of the splits test, train; put those of one split"):
        list(read_cauldron(tmp_path, pictures=tmp_path / "pictures"))


def test_what_is_not_parquet_is_an_error(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"no table at all")
    with pytest.raises(DataFormatError, match=r"a\.parquet cannot be read as Parquet"):
        list(read_cauldron(tmp_path / "a.parquet", pictures=tmp_path))
    whole = parquet(tmp_path / "b.parquet", [{"images": [], "texts": [PAIR]}]).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFormatError, match=r"b\.parquet cannot be read as Parquet"):
        list(read_cauldron(tmp_path / "b.parquet", pictures=tmp_path))
