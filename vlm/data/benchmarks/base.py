"""What evaluations get from data: pictures that are opened when they are needed, with their classes. Knows no file format and no model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor

from vlm.data.image import load_image
from vlm.data.manifest import file_sha256
from vlm.errors import DataFormatError


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is opened when it is needed.

    Attributes:
        id: Its name in its dataset: COCO's image id, or a path.
        source: Its file, or its pixels where a file holds many pictures.
    """

    id: str
    source: Path | UInt8[np.ndarray, "H W 3"]

    def open(self) -> Image.Image:
        """The picture as 8-bit RGB, upright.

        Raises:
            DataFormatError: If it cannot be read.
        """
        return load_image(self.source) if isinstance(self.source, Path) else Image.fromarray(self.source)

    @property
    def num_bytes(self) -> int:
        """Size of what `sha256` reads; -1 for a file that is not there."""
        if not isinstance(self.source, Path):
            return self.source.nbytes
        return self.source.stat().st_size if self.source.is_file() else -1

    def sha256(self) -> str:
        """SHA-256 of the file's bytes, or of the pixels where there is no file; empty if the file cannot be read."""
        if not isinstance(self.source, Path):
            return hashlib.sha256(np.ascontiguousarray(self.source).tobytes()).hexdigest()
        try:
            return file_sha256(self.source)
        except OSError:
            return ""

    def pixels_sha256(self) -> str:
        """SHA-256 of size and decoded pixels, the same for a picture stored without loss in two formats; empty if it cannot be read."""
        try:
            image = self.open()
        except DataFormatError:
            return ""
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures with their classes.

    Attributes:
        name: What results are filed under: CLIP_benchmark's name of the dataset, where it has one.
        pictures: The pictures.
        labels: Number of each picture's class; or, where a picture may be of several classes, whether it is of each.
        class_names: As they stand in prompts.
    """

    name: str
    pictures: Sequence[Picture]
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"]
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """One kind of classification data.

    Attributes:
        open: Reads what lies at a path. Gets the path, a split, and a file of class names or None for the usual ones.
        templates: Usual prompt set (`vlm.data.benchmarks.prompts`).
        split: Usual split; empty where there are none.
        description: One line.
        aliases: Other names.
    """

    open: Callable[[Path, str, Path | None], Labelled]
    templates: str
    split: str
    description: str
    aliases: tuple[str, ...] = ()
