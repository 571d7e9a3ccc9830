"""Other places of a model's towers, as the arguments of commands give them. Knows no model."""

from typing import Any

TOWERS = ("vision_source", "language_source")  # of models that answer
ENCODERS = ("image_source", "text_source")  # of contrastive ones


def sources_of(arguments: Any) -> dict[str, Any]:
    """Other places of a model's towers, as far as arguments have and give them: what `vlm.load` takes beside the name."""
    return {name: source for name in TOWERS + ENCODERS if (source := getattr(arguments, name, ""))}
