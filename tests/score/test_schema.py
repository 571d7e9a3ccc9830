"""The columns of scores, against pyarrow's own conversion."""

import subprocess
import sys

import pyarrow as pa
import pytest

from vlm.errors import ConfigError
from vlm.score.schema import record_batch, schema


def columns(rows: int) -> dict[str, list]:
    """Values of every kind, some of them null."""
    texts = {name: [f"{name} é {i}" for i in range(rows)] for name in ("image", "caption", "status", "error")}
    numbers = {
        name: [None if i % 3 == 0 else i / 7 for i in range(rows)] for name in ("cos", "logit", "siglip_probability", "clipscore", "refclipscore")
    }
    counts = {name: [None if i % 5 == 1 else i * 1000 for i in range(rows)] for name in ("tokens", "width", "height")}
    cut = {"truncated": [None if i % 4 == 2 else i % 2 == 0 for i in range(rows)], "own": [None if i % 2 else "" for i in range(rows)]}
    return {"row": list(range(10**12, 10**12 + rows))} | texts | numbers | counts | cut


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 100])
def test_a_batch_is_what_pyarrow_makes_of_the_values(rows):
    values = columns(rows)
    found = record_batch(values, ("own",))
    found.validate(full=True)
    assert found.equals(pa.RecordBatch.from_pydict(values, schema=schema(("own",))))


def test_pandas_is_not_loaded_for_it():
    line = "import sys; from vlm.score.schema import record_batch, schema; record_batch({name: [] for name in schema().names}); print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_carried_column_does_not_take_the_place_of_another():
    with pytest.raises(ConfigError, match="--carry cos: scores have a column of that name"):
        schema(("cos",))
