"""TensorBoard's event files, in the run folder: `tensorboard --logdir runs` shows all runs beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm.tracking.base import Shown


class TensorBoard:
    """Scalars under the metrics' own names, a table of what the model said, and its pictures."""

    def __init__(self, folder: Path, *, after_step: int = 0):
        """Write into a folder, beside the files of the run that is resumed.

        Args:
            folder: Where the event files go; made if it is missing.
            after_step: What earlier files hold of later steps is hidden: a resumed run takes those steps again.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after_step + 1 if after_step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and flush the values, so that a killed run keeps what it measured."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Write the texts as a table, and each picture under the number of its row."""
        from PIL import Image

        rows = ["| picture | question | reference | generated |", "| --- | --- | --- | --- |"]
        for i, sample in enumerate(samples):
            rows.append(f"| {i if sample.image else ''} | {' | '.join(map(_cell, (sample.question, sample.reference, sample.generated)))} |")
            if sample.image is not None:
                with Image.open(sample.image) as picture:
                    self._writer.add_image(f"pictures/{i}", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.add_text("samples", "\n".join(rows), step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


def _cell(text: str) -> str:
    """A text on one line, with nothing that ends a cell or is taken for HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
