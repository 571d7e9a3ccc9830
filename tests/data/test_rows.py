from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from vlm.data.rows import Distinct, count_distinct, parquet_to_arrow, read_parquet, to_sample, write_parquet
from vlm.data.sample import Sample
from vlm.errors import DataFormatError
from vlm.messages import Message


def sample(name: str, *images: str, sizes: tuple[tuple[int, int], ...] = ()) -> Sample:
    messages = (Message("user", "<image>" * len(images) + "what?"), Message("assistant", "日本"))
    return Sample(name, tuple(map(Path, images)), messages, {"type": "open"}, sizes)


def test_samples_come_back_from_parquet_as_they_were(tmp_path: Path):
    written = [sample("a", "1.png", "2.png", sizes=((3, 4), (5, 6))), sample("b"), sample("c", "1.png")]
    assert write_parquet(written, tmp_path / "rows.parquet") == 3
    assert [to_sample(row, image_root=Path()) for row in read_parquet(tmp_path / "rows.parquet")] == written


def test_file_without_sizes_is_read(tmp_path: Path):
    write_parquet([sample("a", "1.png", sizes=((3, 4),))], tmp_path / "new.parquet")
    pa.parquet.write_table(pa.parquet.read_table(tmp_path / "new.parquet").drop_columns(["sizes"]), tmp_path / "old.parquet")
    (row,) = read_parquet(tmp_path / "old.parquet")
    assert to_sample(row, image_root=Path()) == sample("a", "1.png")
    parquet_to_arrow(tmp_path / "old.parquet", tmp_path / "old.arrow")
    with pa.ipc.open_stream(tmp_path / "old.arrow") as stream:
        assert stream.read_all().to_pylist() == [row]


def test_different_ids_and_images_are_counted(tmp_path: Path):
    rows = [sample("a", "1.png", "2.png"), sample("a", "2.png"), sample("b")] + [sample(f"{i}", "3.png") for i in range(2000)]
    write_parquet(rows, tmp_path / "rows.parquet")
    assert count_distinct(tmp_path / "rows.parquet") == Distinct(ids=2002, images=3)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing"])
def test_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"rows\.parquet is no file of samples") as caught:
        list(read_parquet(tmp_path / "rows.parquet"))
    assert "\n" not in str(caught.value)
