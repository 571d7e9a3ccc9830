"""Files of scores as `vlm score` writes them, for tests of what is made from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from vlm.data.benchmarks.captioned import Captioned
from vlm.score.schema import METADATA, OK, schema


def write_scores(path: Path, rows: Sequence[Mapping[str, Any]], *, carried: tuple[str, ...] = (), first: int = 0, image_root: str = "") -> Path:
    """One file; what a row does not state is null, its status ok, and its number the next one from `first` on."""
    kind = schema(carried).with_metadata({METADATA: json.dumps({"image_root": image_root}).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [dict.fromkeys(kind.names) | {"status": OK, "error": "", "row": first + i} | row for i, row in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full, schema=kind), path, row_group_size=1_000)
    return path


def score_captioned(model: Any, data: Captioned, out: Path) -> Path:
    """Scores of all captions with their pictures, by the model itself; stands for `vlm score --pairs PAIRS --model MODEL --out OUT`."""
    images = model.encode_image([picture.open() for picture in data.pictures])
    cosines = (images[data.owners] * model.encode_text(list(data.captions))).sum(dim=1).tolist()
    names = [str(data.pictures[owner].source) for owner in data.owners.tolist()]
    return write_scores(out, [{"image": image, "caption": text, "cos": cos} for image, text, cos in zip(names, data.captions, cosines, strict=True)])
