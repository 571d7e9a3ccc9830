"""Which rank holds what: every rank the whole model, or each a share of it. Arithmetic alone; `vlm.distributed.shard` carries it out."""

from dataclasses import dataclass

from vlm.errors import ConfigError
from vlm.types import World


@dataclass(frozen=True)
class Placement:
    """The ranks as a table of `replicas` rows and `shards` columns; the ranks of a row hold one copy of the model together.

    Attributes:
        replicas: Copies of the model.
        shards: Ranks that share a copy.
        is_sharded: True for FSDP2, also where a copy has one rank; False for DDP and for one process.
        reshard_after_forward: Free gathered weights after the forward pass.
    """

    replicas: int = 1
    shards: int = 1
    is_sharded: bool = False
    reshard_after_forward: bool = True

    @classmethod
    def of(cls, strategy: str, world: World, *, shard_size: int | None = None, reshard_after_forward: bool = True) -> "Placement":
        """The placement of a strategy on the ranks of a run; one process always holds everything.

        Args:
            strategy: auto, ddp, fsdp or hsdp; see `vlm.conf.schema.ParallelConfig`.
            world: The processes of this run.
            shard_size: Ranks that share a copy under hsdp; None: those of a node.
            reshard_after_forward: See the class.

        Raises:
            ConfigError: If the ranks do not divide into groups of `shard_size`; the nearest sizes that do are named.
        """
        if world.size == 1:
            return cls()
        if strategy in ("auto", "ddp"):
            return cls(replicas=world.size)
        shards = world.size if strategy == "fsdp" else shard_size or world.ranks_per_node
        if world.size % shards:
            raise ConfigError(_misfit(shards, world, given=shard_size is not None))
        return cls(world.size // shards, shards, is_sharded=True, reshard_after_forward=reshard_after_forward)


def _misfit(shards: int, world: World, *, given: bool) -> str:
    fitting = [size for size in range(1, world.size + 1) if world.size % size == 0]
    nearest = [max(size for size in fitting if size < shards), *[size for size in fitting if size > shards][:1]]
    what = f"--parallel.shard-size {shards}" if given else f"--parallel.strategy hsdp with the {shards} ranks of a node"
    return f"{what} does not divide the {world.size} ranks of this run. Nearest that fit: --parallel.shard-size {' or '.join(map(str, nearest))}."
