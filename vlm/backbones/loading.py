"""Loading of towers from the hub, from a folder or at random, with errors that say what to do. Knows no family."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.errors import CheckpointError, MissingPackageError


@dataclass(frozen=True)
class Load:
    """How to fill a tower.

    Attributes:
        source: Hub id or folder of the weights; None builds the architecture with random weights (or none at all, under the meta device).
        dtype: Type of the weights.
        feature_layer: Index into the hidden states, -1 the last; None for the spec's own.
    """

    source: str | Path | None
    dtype: torch.dtype = torch.float32
    feature_layer: int | None = None


def from_pretrained(model_class: Any, source: str | Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """`model_class.from_pretrained` with a one-line error for a source that is not there.

    Raises:
        CheckpointError: If neither a folder nor the hub has it.
    """
    try:
        return model_class.from_pretrained(str(source), output_loading_info=True, attn_implementation="sdpa", **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"Weights {str(source)!r} could not be loaded ({first}). Name a local folder with --model.vision-source or --model.language-source, or check the network and your login to the hub."
        ) from error


def check_architecture(config: Any, expected: Mapping[str, Any], source: str | Path) -> None:
    """Compare a loaded config with the values of a spec.

    Raises:
        CheckpointError: With every value that differs.
    """
    config = getattr(config, "vision_config", config)
    different = {key: (getattr(config, key, None), value) for key, value in expected.items() if getattr(config, key, None) != value}
    if different:
        listed = ", ".join(f"{key} is {seen}, expected {wanted}" for key, (seen, wanted) in different.items())
        raise CheckpointError(f"{source} is another model than its name says: {listed}.")


def require(package: str, needed_for: str, *, extra: str | None = None) -> None:
    """Raise with the install line unless a package is importable.

    Raises:
        MissingPackageError: If it is not.
    """
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(package, needed_for=needed_for, extra=extra)
