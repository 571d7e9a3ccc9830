"""Whether the pictures of an evaluation were trained on, as its report says it; both kinds of `vlm evaluate` ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlm.conf.cli import Repeated
from vlm.errors import ConfigError, DataFormatError, VLMError

if TYPE_CHECKING:
    from vlm.data.benchmarks.base import Picture


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a model was trained on, and what to do about pictures that are evaluated as well."""

    trained_on: Annotated[tuple[str, ...], Repeated] = ()
    """A dataset that a model was trained on, spelled like --stage.dataset of `vlm pretrain`; once for each. Pictures in it are refused."""
    allow_overlap: bool = False
    """Measure pictures that were trained on as well; the report says how many they are."""
    hash_pixels: bool = False
    """Compare decoded pixels with those of --trained-on instead of the files' bytes; reads all training pictures."""


def overlap_notes(
    data: TrainingData, models: Sequence[str], pictures: "Sequence[Picture]", *, data_root: Path, run_root: Path = Path("runs")
) -> list[str]:
    """What the report says of pictures that were trained on.

    Args:
        data: What is known of the training data.
        models: Names of the models; the checkpoints of heads know what they were trained on.
        pictures: Those that are evaluated.
        data_root: Folder of the prepared datasets.
        run_root: Folder of the run folders.

    Raises:
        ConfigError: If there are such pictures, without --allow-overlap.
    """
    from vlm.evaluate.overlap import compare

    specs, notes = dict.fromkeys(data.trained_on), []
    specs |= dict.fromkeys(spec for name in models for spec in trained_on(name, run_root=run_root))
    if not specs:
        if data.allow_overlap or data.hash_pixels:
            raise ConfigError("--allow-overlap and --hash-pixels are about training data: name it with --trained-on.")
        return ["Not checked whether these images were trained on: name the training data with --trained-on."]
    trained: list[Picture] = []
    for spec in specs:
        try:
            trained += _pictures(spec, data_root)
        except VLMError as error:
            if spec in data.trained_on:
                raise
            notes.append(f"Not checked against {spec}, which a model was trained on: {error}")
    if not trained:
        return notes
    return [*notes, str(compare(trained, pictures, pixels=data.hash_pixels, allow=data.allow_overlap))]


def _pictures(spec: str, data_root: Path) -> "Sequence[Picture]":
    """The pictures of training data of any kind."""
    from vlm.data.benchmarks.captioned import open_captioned
    from vlm.data.reader import open_dataset
    from vlm.evaluate.overlap import pictures_of

    try:
        return pictures_of(open_dataset(spec, data_root=data_root))
    except DataFormatError:  # a file of rows with captions, which training of heads alone knows
        return open_captioned(spec, data_root=data_root).pictures


def trained_on(name: str, *, run_root: Path = Path("runs")) -> list[str]:
    """The datasets that a run's heads were trained on, as its checkpoint says; none for a published pair, whose data nobody can name."""
    from vlm.models.checkpoint import find_checkpoint, read_manifest

    try:
        return list(read_manifest(find_checkpoint(name, run_root=run_root)).trained_on)
    except VLMError:
        return []
