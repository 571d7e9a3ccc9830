"""Samples as rows of a table: the Parquet of a prepared dataset, and the Arrow file that training maps into memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vlm.data.sample import Sample
from vlm.errors import DataFormatError, MissingPackageError
from vlm.messages import Message

ROWS_A_BATCH = 1000  # rows are written in blocks of this many: enough to compress well, few enough to hold in memory


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError("datasets", needed_for="Reading and writing prepared datasets", extra="data") from None
    return pyarrow


def schema() -> Any:
    """The columns: id, images (relative paths), messages (role and text), extra (JSON), sizes (height and width of each image, or none at all)."""
    pa = _pyarrow()
    message = pa.struct([("role", pa.string()), ("text", pa.string())])
    size = pa.struct([("height", pa.int32()), ("width", pa.int32())])
    columns = {"id": pa.string(), "images": pa.list_(pa.string()), "messages": pa.list_(message), "extra": pa.string(), "sizes": pa.list_(size)}
    return pa.schema(list(columns.items()))


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as plain values; its image paths are written as they are."""
    return {
        "id": sample.id,
        "images": [path.as_posix() for path in sample.images],
        "messages": [{"role": message.role, "text": message.text} for message in sample.messages],
        "extra": json.dumps(dict(sample.extra), sort_keys=True) if sample.extra else "",
        "sizes": [{"height": height, "width": width} for height, width in sample.sizes],
    }


def to_sample(row: Mapping[str, Any], *, image_root: Path) -> Sample:
    """The sample of a row; its image paths are taken below `image_root`.

    Raises:
        DataFormatError: If placeholders and images differ in number.
    """
    return Sample(
        id=row["id"],
        images=tuple(image_root / name for name in row["images"]),
        messages=tuple(Message(role=message["role"], text=message["text"]) for message in row["messages"]),
        extra=json.loads(row["extra"]) if row["extra"] else {},
        sizes=tuple((size["height"], size["width"]) for size in row.get("sizes") or ()),
    )


def write_parquet(samples: Iterable[Sample], path: Path) -> int:
    """Write samples and return how many they were."""
    count = 0
    with _pyarrow().parquet.ParquetWriter(path, schema()) as writer:
        for batch in _batches(samples):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def write_arrow(samples: Iterable[Sample], path: Path) -> None:
    """Write samples as an Arrow stream, the format that `datasets` maps into memory."""
    _write_stream(_batches(samples), path)


def parquet_to_arrow(source: Path, path: Path) -> None:
    """Unpack a Parquet file of samples into an Arrow stream, block by block."""
    _write_stream(_stored_batches(source), path)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file of samples as plain values, which `to_sample` takes.

    Raises:
        DataFormatError: If the file is no Parquet of samples.
    """
    for batch in _stored_batches(path):
        yield from batch.to_pylist()


class Distinct(NamedTuple):
    """Numbers of different values in a file of samples."""

    ids: int
    images: int


def count_distinct(path: Path) -> Distinct:
    """Numbers of different ids and of different images of a Parquet file of samples."""
    pa = _pyarrow()
    ids = len(pa.parquet.read_table(path, columns=["id"])["id"].unique())  # one column at a time: each is as large as its million names
    names = pa.parquet.read_table(path, columns=["images"])["images"]
    images = pa.chunked_array([chunk.flatten() for chunk in names.chunks], type=pa.string())
    return Distinct(ids=ids, images=len(images.unique()))


def _stored_batches(path: Path) -> Iterator[Any]:
    """The record batches of a Parquet file; columns that older files lack are empty."""
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH):
                yield _completed(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataFormatError(
            f"{path} is no file of samples ({' '.join(str(error).split())}). Prepare the dataset again with --overwrite."
        ) from error


def _completed(batch: Any) -> Any:
    pa = _pyarrow()
    if "sizes" not in batch.schema.names:  # format_version 1
        batch = batch.append_column("sizes", pa.array([[]] * batch.num_rows, type=schema().field("sizes").type))
    return batch.select(schema().names).cast(schema())


def _write_stream(batches: Iterable[Any], path: Path) -> None:
    pa = _pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(samples: Iterable[Sample]) -> Iterator[Any]:
    rows = (to_row(sample) for sample in samples)
    while block := list(islice(rows, ROWS_A_BATCH)):
        yield _pyarrow().RecordBatch.from_pylist(block, schema=schema())
