"""The stream of rows: complete, the same for everybody, continued from any position at once."""

import time
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise

import numpy as np
import pytest

from vlm.data.stream.mixture import Draws
from vlm.data.stream.order import Arrange, Position, RowOrder, Units, grouped, one_a_row, packed, shuffled

RNG = np.random.default_rng(0)
SIZE = 500
LENGTHS = RNG.integers(10, 300, SIZE)
PICTURED = RNG.random(SIZE) < 0.8


def order(arrange: Arrange, *, window: int = 64, capacity: int | None = None, size: int = SIZE, seed: int = 1) -> RowOrder:
    return RowOrder(
        Units(size, lengths=LENGTHS, with_images=PICTURED), Draws((size,), (size,), seed), arrange, capacity=capacity, seed=seed, window=window
    )


def packing(**settings: int) -> RowOrder:
    return order(partial(packed, lengths=LENGTHS, capacity=512), capacity=512, **settings)


def grouping(batch: int = 16, **settings: int) -> RowOrder:
    return order(partial(grouped, lengths=LENGTHS, with_images=PICTURED, batch=batch), **settings)


KINDS: dict[str, Callable[..., RowOrder]] = {"one a row": partial(order, one_a_row), "packed": packing, "grouped": grouping}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


def samples(made: RowOrder, epochs: int = 1) -> list[int]:
    rows = islice(made.stream(), made.count_rows(epochs)[0])
    return [sample for row, _ in rows for tree in row for sample in tree]


@kinds
@pytest.mark.parametrize("window", [1, 7, 64, 4096])
def test_an_epoch_holds_every_sample_once(make: Callable[..., RowOrder], window: int):
    seen = samples(make(window=window), 3)
    for epoch in range(3):
        assert sorted(seen[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))
    assert seen[:SIZE] != seen[SIZE : 2 * SIZE]


@kinds
def test_the_order_is_a_function_of_the_seed(make: Callable[..., RowOrder]):
    assert samples(make()) == samples(make()) != samples(make(seed=2))


@kinds
def test_the_stream_goes_on_from_every_position(make: Callable[..., RowOrder]):
    made = make()
    stream = list(islice(made.stream(), 2 * made.count_rows(1)[0] + 20))
    for i in range(0, len(stream) - 15, 7):
        assert list(islice(made.stream(stream[i][1]), 10)) == stream[i + 1 : i + 11]


def test_the_position_after_the_last_row_of_an_epoch_is_the_next_epoch():
    made = packing()
    assert list(islice(made.stream(), made.count_rows(1)[0]))[-1][1] == Position(1, 0, 0)


@pytest.mark.parametrize("arrange", [one_a_row, partial(packed, lengths=np.full(1, 100), capacity=512)], ids=["one a row", "packed"])
def test_a_stream_goes_on_at_position_fifty_million_at_once(arrange: Arrange):
    size = 10**8
    if arrange is not one_a_row:
        arrange = partial(_packed_by_formula, capacity=512)
    made = RowOrder(Units(size), Draws((size,), (size,), 1), arrange, capacity=None, seed=1)
    start = time.perf_counter()
    row, _ = next(made.stream(Position(0, 50_000_000 // made.window, 17)))
    assert time.perf_counter() - start < 1.0
    assert 0 <= row[0][0] < size


def _packed_by_formula(units: np.ndarray, rng: np.random.Generator, position: int, *, capacity: int) -> list[list[int]]:
    """Packing with lengths that need no table of 10^8 entries."""
    rows = packed(np.arange(len(units)), rng, position, lengths=units % 200 + 10, capacity=capacity)
    return [units[row].tolist() for row in rows]


def test_packed_rows_fit_and_are_shuffled():
    rows = [row for row, _ in islice(packing(window=4096).stream(), packing(window=4096).count_rows(1)[0])]
    sizes = [sum(LENGTHS[tree[0]] for tree in row) for row in rows]
    assert max(sizes) <= 512
    assert sum(sizes) / (512 * len(rows)) > 0.95
    assert sizes != sorted(sizes) and sizes != sorted(sizes, reverse=True)


def test_rows_of_part_of_an_epoch_are_its_share():
    assert shuffled(10, 0).count_rows(1.25) == (13, True)
    assert shuffled(10, 0).count_rows(0.01) == (1, True)
    whole, part = packing().count_rows(1)[0], packing().count_rows(1.5)[0]
    assert part == pytest.approx(1.5 * whole, abs=2)


def test_huge_epochs_are_extrapolated_from_some_windows(monkeypatch: pytest.MonkeyPatch):
    made = packing(window=4)
    exact = made.count_rows(1)[0]
    monkeypatch.setattr("vlm.data.stream.order.PLANNED_EXACTLY", 100)
    rows, is_exact = made.count_rows(1)
    assert not is_exact
    assert rows == pytest.approx(exact, rel=0.05)


def batches(made: RowOrder, batch: int, count: int) -> list[list[int]]:
    stream = [row[0][0] for row, _ in islice(made.stream(), batch * count)]
    return [stream[i : i + batch] for i in range(0, len(stream), batch)]


@pytest.mark.parametrize("batch", [1, 3, 16, 40])
def test_grouped_batches_run_from_long_to_short_and_have_one_modality_where_possible(batch: int):
    made = batches(grouping(batch, window=4096), batch, 2 * SIZE // batch)
    whole = [b for i, b in enumerate(made) if (i * batch) // SIZE == ((i + 1) * batch - 1) // SIZE]  # not across the border of an epoch
    for one in whole:
        assert all(LENGTHS[a] >= LENGTHS[b] for a, b in pairwise(one))
    pure = sum(len({bool(PICTURED[i]) for i in one}) == 1 for one in whole)
    assert pure >= len(whole) - 4  # left-overs of both modalities make a mixed batch an epoch, the border of the epoch another


def test_the_first_batch_of_all_holds_the_longest():
    assert batches(grouping(16, window=4096), 16, 1)[0][0] == int(LENGTHS.argmax())


@pytest.mark.parametrize("pictured", [0, 1, 5, 495, 499, 500])
@pytest.mark.parametrize("batch", [1, 16, 300, 700])
def test_any_number_of_either_modality_will_do(pictured: int, batch: int):
    """LLaVA's sampler fails on text alone, and on fewer texts than a batch."""
    with_images = np.arange(SIZE) < pictured
    made = order(partial(grouped, lengths=LENGTHS, with_images=with_images, batch=batch))
    assert sorted(samples(made)) == list(range(SIZE))


def test_a_unit_of_several_samples_is_one_tree():
    units = Units(2, (np.array([4, 1, 3, 0]), np.array([0, 3, 4])))
    made = RowOrder(units, Draws((2,), (2,), 0), one_a_row, capacity=None, seed=0)
    assert sorted(made.rows(0, 0)) == [((0,),), ((4, 1, 3),)]
