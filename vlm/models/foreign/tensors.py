"""Weights of foreign checkpoints by name: read without running their code, handed out once, and compared with what a module expects.

Knows no format; a format says which names belong to which part.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.weight_files import read_tensors
from vlm.errors import CheckpointError, VLMError

SHOWN = 4  # names that a message lists
BUFFERS = (".inv_freq", ".position_ids", ".masked_bias")  # that old transformers stored, computed anew since
CODE_REMEDY = "Weights alone are read, because a pickle can run code; ask its owner for a file of tensors."


class Tensors:
    """Tensors of a checkpoint; each is taken once, and `finish` refuses what nobody took."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: Path):
        """Hold the tensors.

        Args:
            tensors: By name.
            origin: Where they come from, for messages.

        Raises:
            CheckpointError: If one of them has no name, or is no tensor of floating-point numbers.
        """
        tensors = {name: tensor for name, tensor in tensors.items() if not str(name).endswith(BUFFERS)}
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise CheckpointError(f"{origin} holds {name!r} of type {kind}; expected weights by name, of floating-point numbers. Copy it again.")
        self._left = dict(tensors)
        self.origin = origin

    def __contains__(self, prefix: object) -> bool:
        """True if a name that begins so is left."""
        return any(name.startswith(str(prefix)) for name in self._left)

    def names(self) -> list[str]:
        """Names that are left."""
        return list(self._left)

    def take(self, prefix: str, *, to: str = "") -> dict[str, Tensor]:
        """The tensors whose names begin so, with another beginning; they are gone afterwards."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {to + name.removeprefix(prefix): self._left.pop(name) for name in names}

    def finish(self) -> None:
        """Refuse tensors that belong to no part.

        Raises:
            CheckpointError: With their names.
        """
        if self._left:
            raise CheckpointError(f"{self.origin} holds {listed(self._left)} that belong to no part of this model. Is it of this format?")


def read_pickle(path: Path) -> Any:
    """What a `.pt` or `.bin` file holds, tensors and plain containers only.

    Raises:
        CheckpointError: If it is missing, cut short, or would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Name the folder as its trainer wrote it.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        reason = " ".join(str(error).split())
        global_name = next(
            (word for word in reason.split() if word.count(".") and "GLOBAL" in reason and word[0].isalpha() and word[-1].isalpha()), ""
        )
        what = f"is no file of tensors{f': it names {global_name}' if global_name else ''}"
        raise CheckpointError(f"{path} {what}. {CODE_REMEDY}") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}); it may be cut short. Copy or download it again."
        ) from error


def read_folder(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder or hub id in transformers' layout, sharded or not, or of a file.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    return read_tensors(folder, lambda _: True)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """What a library says of a config that it cannot make sense of, in one line.

    Raises:
        CheckpointError: If it says anything.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except VLMError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"{what} makes no model ({' '.join(str(error).split())[:200]}). Compare it with the one that was trained.") from error


def listed(names: Iterable[str]) -> str:
    """`3 tensors (a, b, c)`."""
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({', '.join(names[:SHOWN])}{more})"


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Any], *, what: str, origin: Path, remedy: str) -> None:
    """Compare the names and shapes of a part's tensors with those that its module has.

    Args:
        tensors: What the checkpoint holds of the part.
        expected: The module's, with `shape`.
        what: The part, for messages.
        origin: Where the tensors come from.
        remedy: What the user can do if they are of another size.

    Raises:
        CheckpointError: With the tensors that are missing, unknown or of another shape.
    """
    missing, unknown = [name for name in expected if name not in tensors], [name for name in tensors if name not in expected]
    if missing:
        raise CheckpointError(f"{origin} lacks {listed(missing)} of the {what}. {remedy}")
    if unknown:
        raise CheckpointError(f"{origin} holds {listed(unknown)} that the {what} does not have. {remedy}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(expected[name].shape):
            raise CheckpointError(f"{origin}: {name} of the {what} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}. {remedy}")
