"""Run by the tests under torchrun: train every stored config, and fail unless its weights were spread as the config says."""

import sys
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor, Replicate, Shard

import vlm
from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import read_config
from vlm.distributed.placement import Placement
from vlm.training import loop


def check_spread(model: Any, placement: Placement, world: Any) -> Any:
    """`spread`, and then every weight looked at."""
    wrapped = spread(model, placement, world)
    expected = {1: (Shard(0),), 2: (Replicate(), Shard(0))}
    for name, weight in model.named_parameters():
        assert isinstance(weight, DTensor) == placement.is_sharded, name
        if isinstance(weight, DTensor):
            assert weight.placements == expected[weight.device_mesh.ndim], name
            assert weight.device_mesh.size() == world.size, name
    sys.stdout.write(f"{placement.replicas}x{placement.shards}{' sharded' if placement.is_sharded else ''}\n" if world.is_main else "")
    return wrapped


spread, loop.spread = loop.spread, check_spread
for path in sys.argv[1:]:
    vlm.train(read_config(Path(path), TrainConfig))
