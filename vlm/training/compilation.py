"""torch.compile, block by block: one graph serves all blocks of a tower, so that compiling takes a minute and not one for each layer.

Shapes are bounded. A block's first lengths are compiled as they are, the next ones with lengths left open, and that graph serves all that come. Attention
is called outside of the graphs, because what it is given about documents is different in each batch; so is the last block of a language model, which
computes at as many places as a batch has labels. Packed rows (`--stage.pack-length`) keep lengths close together besides.
"""

import logging
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError

log = logging.getLogger(__name__)


def compile_part(model: Any, part: str) -> None:
    """Compile the blocks of a model's vision or language part; of the latter, all but the last.

    Args:
        model: A vision-language model.
        part: vision or language.
    """
    blocks = getattr(model, part).blocks()
    compile_blocks(blocks[:-1] if part == "language" else blocks)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward and backward pass of blocks when they are first called; names of modules and weights stay.

    Comes before `vlm.training.recompute.recompute`, which then runs a compiled block again.

    Raises:
        ConfigError: If this machine has no compiler for the code that torch generates for a CPU.
    """
    if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise ConfigError("--stage.compile needs a C++ compiler on a machine without a GPU, and finds none. Install g++, or leave the setting out.")
    for block in blocks:
        block.forward = _compiled(block.forward)  # type: ignore[method-assign]


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(forward)

    def run(*values: Any, **named: Any) -> Any:
        generates = named.get("past_key_values") is not None  # one more key at each call: not worth a graph
        return (forward if generates else fast)(*values, **named)

    return run
