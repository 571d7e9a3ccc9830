"""The columns of scores, and what a row's status can be. Knows no model and computes nothing.

`vlm score` writes them; `vlm curate` reads them. Columns that a user carries over from the input stand behind these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm.errors import ConfigError, MissingPackageError

OK = "ok"
STATUSES = {
    OK: "scored",
    "row_error": "the row of the input cannot be read, or lacks the picture's or the caption's cell",
    "empty_text": "the caption is empty or white space",
    "fetch_error": "the picture's bytes cannot be had: no such file, a URL that is refused or does not answer",
    "decode_error": "the bytes are no picture, or a broken one, or of a shape that the model does not take",
    "too_large": "the picture has more bytes or pixels than allowed",
    "model_error": "the model gave a value that is not finite",
}
INSIDE = "sha256:"  # begins the name of a picture that lay in the scored table itself
# Key of the file's metadata whose value is JSON: model, image_root, url_file, cache, scale, bias, settings, statuses, versions.
METADATA = b"vlm.score"


def schema(carried: tuple[str, ...] = ()) -> Any:
    """The columns as pyarrow has them; one row for each row of the input, in its order.

    row: Number of the row over all input files in their order, from 0.
    image: What names the picture: a path as it stands in the input (below `image_root` of the metadata, if that is not empty), a URL, or `sha256:...` where
        the cell holds the picture itself.
    caption: The caption as it stands in the input.
    status, error: A key of `STATUSES`, and the reason in one line (empty for ok).
    cos: Cosine of picture and caption, -1 to 1. This and all numbers below are null where they do not exist.
    logit: Scale times cosine plus bias, as the model was trained with.
    siglip_probability: Sigmoid of the logit, for models that were trained with sigmoids alone.
    clipscore: 2.5 * max(cos, 0) (Hessel et al. 2021, arXiv:2104.08718).
    refclipscore: Harmonic mean of clipscore and the caption's highest cosine with a reference, where there are references.
    tokens, truncated: Tokens of the caption with prefix and special tokens, before it is cut; whether it was cut.
    width, height: Pixels of the upright picture as it is stored.

    Args:
        carried: Names of columns of the input that are copied, as text.

    Raises:
        ConfigError: If one of them has the name of another column here.
    """
    pa = pyarrow()
    columns = {
        "row": pa.int64(),
        "image": pa.string(),
        "caption": pa.string(),
        "status": pa.string(),
        "error": pa.string(),
        "cos": pa.float32(),
        "logit": pa.float32(),
        "siglip_probability": pa.float32(),
        "clipscore": pa.float32(),
        "refclipscore": pa.float32(),
        "tokens": pa.int32(),
        "truncated": pa.bool_(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    if clashing := [name for name in carried if name in columns]:
        raise ConfigError(f"--carry {clashing[0]}: scores have a column of that name themselves. Rename the one of the input.")
    return pa.schema(list((columns | {name: pa.string() for name in carried}).items()))


def record_batch(values: Mapping[str, Sequence[Any]], carried: tuple[str, ...] = ()) -> Any:
    """Columns of plain values as pyarrow has them; None is null.

    Args:
        values: The values of each column of `schema(carried)`.
        carried: See `schema`.
    """
    columns = schema(carried)
    return pyarrow().RecordBatch.from_arrays([_array(values[each.name], each.type) for each in columns], schema=columns)


def _array(values: Sequence[Any], kind: Any) -> Any:
    """What `pyarrow.array` makes, out of buffers: the function itself imports pandas where it is installed, 30 MB that nothing here needs."""
    pa = pyarrow()
    present = np.fromiter((value is not None for value in values), bool, len(values))
    buffers = [None if present.all() else np.packbits(present, bitorder="little")]
    if pa.types.is_string(kind):
        encoded = [b"" if value is None else value.encode() for value in values]
        buffers += [np.cumsum([0, *map(len, encoded)], dtype=np.int32), b"".join(encoded)]
    elif pa.types.is_boolean(kind):
        buffers.append(np.packbits(np.fromiter(map(bool, values), bool, len(values)), bitorder="little"))
    else:
        buffers.append(np.fromiter((0 if value is None else value for value in values), kind.to_pandas_dtype(), len(values)))
    return pa.Array.from_buffers(kind, len(values), [buffer if buffer is None else pa.py_buffer(buffer) for buffer in buffers])


def pyarrow() -> Any:
    """The package pyarrow with its Parquet part.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError("pyarrow", needed_for="Writing scores as Parquet", extra="data") from None
    return pyarrow
