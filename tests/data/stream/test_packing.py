"""Best-fit decreasing, by hand and against the plain quadratic search."""

import numpy as np
import pytest

from vlm.data.stream.packing import efficiency, pack


def plain_best_fit(lengths: list[int], capacity: int) -> int:
    """Number of rows of best-fit decreasing as the textbook writes it."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return len(rooms)


def test_documents_go_where_they_leave_the_least_room():
    # 7 opens a row of room 3, 6 one of room 4; 4 fills the second, 3 the first, 2 and 1 open a third
    assert pack(np.array([6, 7, 2, 4, 3, 1]), 10) == [[1, 4], [0, 3], [2, 5]]


@pytest.mark.parametrize("seed", range(5))
def test_as_few_rows_as_the_textbook_and_every_document_once(seed: int):
    rng = np.random.default_rng(seed)
    lengths, capacity = rng.integers(1, 200, 300), int(rng.integers(200, 400))
    rows = pack(lengths, capacity)
    assert sorted(document for row in rows for document in row) == list(range(300))
    assert max(lengths[row].sum() for row in rows) <= capacity
    assert len(rows) == plain_best_fit(lengths.tolist(), capacity)
    assert efficiency(rows, lengths, capacity) == pytest.approx(lengths.sum() / (len(rows) * capacity))


def test_full_rows_and_nothing_at_all():
    assert pack(np.array([5, 5]), 5) == [[0], [1]]
    assert pack(np.array([], dtype=np.int64), 5) == []


@pytest.mark.parametrize("length", [0, 6])
def test_a_document_that_fits_no_row_is_refused(length: int):
    with pytest.raises(ValueError, match="do not go into rows of 5"):
        pack(np.array([length, 3]), 5)
