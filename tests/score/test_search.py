"""Blockwise search against one sort of all similarities."""

import pytest
import torch
import torch.nn.functional as F

from vlm.data.feature_cache import FeatureCache, write_features
from vlm.errors import CheckpointError
from vlm.score import search
from vlm.score.search import Nearest, nearest
from vlm.types import World


@pytest.fixture
def cache(tmp_path):
    """300 vectors in shards of 70, each of the last 50 equal to one of the first."""
    vectors = torch.randn(300, 8)
    vectors[250:] = vectors[:50]
    write_features(tmp_path / "cache", range(300), lambda items: vectors[items], key={}, dtype=torch.float32, batch_size=32, shard_rows=70)
    return FeatureCache(tmp_path / "cache")


@pytest.mark.parametrize("rows_at_once", [7, 64, 1_000])
@pytest.mark.parametrize("k", [1, 10, 300, 400])
def test_what_is_found_is_what_one_sort_of_everything_finds_equal_ones_in_their_order(cache, k, rows_at_once):
    head, queries = torch.nn.Linear(8, 5), torch.randn(4, 5)
    with torch.no_grad():
        vectors = F.normalize(head(cache.rows(range(300))), dim=-1)
    cosines, items = (F.normalize(queries, dim=-1).double() @ vectors.double().T).sort(descending=True, stable=True)
    found = nearest(cache, queries, k, head=head, rows_at_once=rows_at_once)
    torch.testing.assert_close(found.cosines, cosines[:, :k].float())
    first_of_equals = items.clone()
    first_of_equals[items >= 250] -= 250  # rounding may order two equal vectors of different blocks either way
    seen = found.items.clone()
    seen[seen >= 250] -= 250
    assert torch.equal(seen, first_of_equals[:, :k])


def test_of_equal_cosines_the_lower_items_come_first(tmp_path):
    write_features(tmp_path / "same", range(90), lambda items: torch.ones(len(items), 4), key={}, batch_size=32)
    found = nearest(FeatureCache(tmp_path / "same"), torch.ones(2, 4), 7, rows_at_once=20)
    assert found.items.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2


@pytest.mark.parametrize("k", [1, 40, 400])
def test_several_processes_find_together_what_one_finds(cache, k, monkeypatch):
    queries = torch.randn(4, 8)
    alone = nearest(cache, queries, k, rows_at_once=37)
    shares: list[Nearest] = []
    monkeypatch.setattr(search, "gather", lambda share, world: shares.append(share) or [share] * world.size)
    for rank in range(3):
        nearest(cache, queries, k, rows_at_once=37, world=World(rank=rank, size=3, device=torch.device("cpu")))
    monkeypatch.setattr(search, "gather", lambda share, world: shares)
    found = nearest(cache, queries, k, rows_at_once=37, world=World(rank=0, size=3, device=torch.device("cpu")))
    assert torch.equal(found.items, alone.items) and torch.equal(found.cosines, alone.cosines)
    assert all(share.items.shape[1] < 300 for share in shares)


def test_vectors_of_another_width_are_refused(cache):
    with pytest.raises(CheckpointError, match="have width 8 in the joint space, the queries 5"):
        nearest(cache, torch.randn(1, 5), 3)
