"""Samples as rows of a table: the Parquet of a prepared dataset, and the Arrow file that training maps into memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.data.sample import Sample
from vlm.errors import MissingPackageError
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
    """The columns: id, images (relative paths), messages (role and text), extra (JSON)."""
    pa = _pyarrow()
    message = pa.struct([("role", pa.string()), ("text", pa.string())])
    return pa.schema([("id", pa.string()), ("images", pa.list_(pa.string())), ("messages", pa.list_(message)), ("extra", pa.string())])


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as plain values; its image paths are written as they are."""
    return {
        "id": sample.id,
        "images": [path.as_posix() for path in sample.images],
        "messages": [{"role": message.role, "text": message.text} for message in sample.messages],
        "extra": json.dumps(dict(sample.extra), sort_keys=True) if sample.extra else "",
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
    table = _pyarrow().parquet.ParquetFile(source)
    _write_stream((batch.cast(schema()) for batch in table.iter_batches(batch_size=ROWS_A_BATCH)), path)


def _write_stream(batches: Iterable[Any], path: Path) -> None:
    pa = _pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _batches(samples: Iterable[Sample]) -> Iterator[Any]:
    rows = (to_row(sample) for sample in samples)
    while block := list(islice(rows, ROWS_A_BATCH)):
        yield _pyarrow().RecordBatch.from_pylist(block, schema=schema())
