"""Which of equal rows are dropped, in one file and in many."""

import numpy as np
import pytest

from vlm.errors import ConfigError
from vlm.score.duplicates import digests, worse_of_equals


@pytest.mark.parametrize("rows_of_file", [10_000, 60], ids=["one file", "many files"])
def test_the_best_of_equal_rows_stays_and_of_equally_good_ones_the_first(tmp_path, rows_of_file):
    random = np.random.default_rng(1)
    names = [f"picture {i}" for i in random.integers(0, 200, 1_000)]
    keys = random.integers(0, 4, 1_000).astype(np.uint32)
    parts = [(np.arange(i, i + 250), digests(names[i : i + 250]), keys[i : i + 250]) for i in range(0, 1_000, 250)]
    dropped = np.concatenate(list(worse_of_equals(parts, num_rows=1_000, scratch=tmp_path, rows_of_file=rows_of_file)))
    best: dict[str, int] = {}
    for row, name in enumerate(names):
        if name not in best or keys[row] > keys[best[name]]:
            best[name] = row
    assert sorted({*range(1_000)} - {*dropped.tolist()}) == sorted(best.values())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.*Free 20 bytes a row"):
        list(worse_of_equals([], num_rows=1, scratch=tmp_path / "gone"))
