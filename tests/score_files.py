"""Files of scores as `vlm score` writes them, for tests of what is made from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from vlm.score.schema import METADATA, OK, schema


def write_scores(
    path: Path, rows: Sequence[Mapping[str, Any]], *, carried: tuple[str, ...] = (), first: int = 0, image_root: str = "", **places: str
) -> Path:
    """One file; what a row does not state is null, its status ok, and its number the next one from `first` on; `places` are `url_file` and `cache`."""
    kind = schema(carried).with_metadata({METADATA: json.dumps({"image_root": image_root} | places).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [dict.fromkeys(kind.names) | {"status": OK, "error": "", "row": first + i} | row for i, row in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full, schema=kind), path, row_group_size=1_000)
    return path
