import pytest
import torch

from vlm.distributed.placement import Placement
from vlm.errors import ConfigError
from vlm.types import World


def world(size: int, ranks_per_node: int = 8) -> World:
    return World(rank=0, size=size, device=torch.device("cpu"), ranks_per_node=ranks_per_node)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp", "hsdp"])
def test_one_process_holds_everything(strategy):
    assert Placement.of(strategy, World.single(), shard_size=3) == Placement(1, 1, is_sharded=False)


@pytest.mark.parametrize(
    ("strategy", "shard_size", "expected"),
    [
        ("auto", None, Placement(16, 1)),
        ("ddp", None, Placement(16, 1)),
        ("fsdp", None, Placement(1, 16, is_sharded=True)),
        ("hsdp", None, Placement(2, 8, is_sharded=True)),
        ("hsdp", 4, Placement(4, 4, is_sharded=True)),
        ("hsdp", 1, Placement(16, 1, is_sharded=True)),
    ],
)
def test_ranks_are_a_table_of_copies_and_shares(strategy, shard_size, expected):
    assert Placement.of(strategy, world(16), shard_size=shard_size) == expected


@pytest.mark.parametrize(("size", "shard_size", "nearest"), [(12, 5, "4 or 6"), (8, 16, "8"), (6, 4, "3 or 6"), (7, 2, "1 or 7")])
def test_groups_that_do_not_divide_are_refused_with_the_nearest_that_do(size, shard_size, nearest):
    with pytest.raises(
        ConfigError, match=rf"--parallel.shard-size {shard_size} does not divide the {size} ranks of this run. Nearest .* {nearest}\.$"
    ):
        Placement.of("hsdp", world(size), shard_size=shard_size)


def test_nodes_of_different_size_are_named():
    with pytest.raises(ConfigError, match=r"hsdp with the 8 ranks of a node does not divide the 12 ranks .* --parallel.shard-size 6 or 12\.$"):
        Placement.of("hsdp", world(12))
