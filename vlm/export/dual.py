"""A dual encoder in the format of another library: written, loaded there, compared, and removed again if it is not the same model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.backbones.writing import new_folder, refuse_existing
from vlm.errors import CheckpointError, ConfigError
from vlm.export.llm2clip_pair import as_llm2clip
from vlm.export.open_clip_pair import CONFIG, as_open_clip
from vlm.export.parity import Parity, compare
from vlm.export.transformers_pair import Writer, as_transformers
from vlm.models.dual_encoder import DualEncoder

FORMATS = {"transformers": as_transformers, "open_clip": as_open_clip, "llm2clip": as_llm2clip}
AUTO = "auto"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        format: A key of FORMATS.
        parity: How far the loaded copy is from the model.
        notes: What the user should know of the folder.
    """

    format: str
    parity: Parity
    notes: tuple[str, ...]


def export_dual(model: DualEncoder, out: Path, *, format: str = AUTO) -> Exported:
    """Write a dual encoder for another library, and check it there.

    Args:
        model: The model, in fp32 on the CPU.
        out: The folder to write; must not exist.
        format: A key of FORMATS, or auto: the first that can hold the model.

    Raises:
        ConfigError: If no format, or not this one, can hold the model; with the reasons.
        CheckpointError: If `out` exists or cannot be written, or the copy is not equal to the model; then nothing is left of it.
    """
    refuse_existing(out)
    chosen, write = _writer(model, format)
    with new_folder(out, num_bytes=sum(weight.nbytes for weight in model.parameters())) as folder:
        foreign = write(folder)
        parity = compare(model, foreign)
        if not parity.is_equal:
            raise CheckpointError(f"The export to {chosen} is not equal to the model, so {out} was removed: {'; '.join(parity.lines())}.")
        places = (str(folder.resolve()), str(out.resolve())), (str(folder), str(out))
        escaped = [(json.dumps(old)[1:-1], json.dumps(new)[1:-1]) for old, new in places]
        for path in folder.glob(CONFIG):  # which says where it lies
            path.write_text(_replaced(path.read_text(encoding="utf-8"), escaped), encoding="utf-8")
    return Exported(chosen, parity, tuple(_replaced(note, places) for note in foreign.notes))


def _replaced(text: str, places: Sequence[tuple[str, str]]) -> str:
    """A text with the folder's own name in place of the one that it had while it was made."""
    for old, new in places:
        text = text.replace(old, new)
    return text


def _writer(model: DualEncoder, format: str) -> tuple[str, Writer]:
    """The format, and what writes it.

    Raises:
        ConfigError: If it cannot hold the model.
    """
    reasons = []
    for name in FORMATS if format == AUTO else (format,):
        try:
            return name, FORMATS[name](model)
        except ConfigError as error:
            reasons.append(f"{name}: {error}.")
    raise ConfigError(f"This model cannot be exported. {' '.join(reasons)}")
