"""Other places of a model's towers, as the arguments of commands give them. Knows no model."""

from typing import Any

from vlm.errors import ConfigError

TOWERS = ("vision_source", "language_source")  # of models that answer
ENCODERS = ("image_source", "text_source")  # of contrastive ones


def sources_of(arguments: Any) -> dict[str, Any]:
    """Other places of a model's towers, as far as arguments have and give them: what `vlm.load` takes beside the name."""
    return {name: source for name in TOWERS + ENCODERS if (source := getattr(arguments, name, ""))}


def sources_of_one(arguments: Any) -> dict[str, str]:
    """Other places of a model's towers, as far as they are given.

    Args:
        arguments: Those of the command, with `model` among them.

    Raises:
        ConfigError: If they would be those of several models.
    """
    sources = sources_of(arguments)
    if sources and len(arguments.model) > 1:
        raise ConfigError(
            f"--{next(iter(sources)).replace('_', '-')} is for one --model; got {len(arguments.model)}. Evaluate them one after the other."
        )
    return sources
