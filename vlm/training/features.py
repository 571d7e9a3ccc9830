"""The vectors that heads are trained on: computed once by frozen encoders, and found again by later runs. Trains nothing.

A folder is named after the encoder and a hash of all that is known of its vectors without loading it: source, type, items. If it is finished, the encoder is
not loaded at all; its fingerprint is in the cache's key, and is compared when the trained model is used.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.backbones.fingerprint import fingerprint
from vlm.data.benchmarks.base import Picture
from vlm.data.feature_cache import FeatureCache, write_features
from vlm.data.image import load_image, to_pixels
from vlm.distributed.collectives import any_rank, wait_for_all
from vlm.errors import VLMError
from vlm.tracking import counting
from vlm.types import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder that need not be loaded yet.

    Attributes:
        name: Its name.
        source: Where its weights come from; empty for random ones.
        build: Makes it.
    """

    name: str
    source: str
    build: Callable[[], Any]


@dataclass(frozen=True)
class Vectors:
    """Where vectors are kept and how they are made.

    Attributes:
        root: Folder of all caches.
        world: The processes that share the work.
        stored: How a number is stored.
        batch_size: Items that are encoded at once.
    """

    root: Path
    world: World
    stored: torch.dtype
    batch_size: int

    def of_pictures(self, encoder: Frozen, pictures: Sequence[Picture]) -> FeatureCache:
        """One vector a picture.

        Args:
            encoder: The image encoder.
            pictures: The pictures; their files' sizes are part of what the cache is of.

        Raises:
            DataFormatError: If a picture cannot be read.
        """
        known = {"sizes": _digest(picture.num_bytes for picture in pictures)}

        def encode(image: Any, files: list[Path]) -> Tensor:
            return image(to_pixels([load_image(file) for file in files], image.image_policy).to(self.world.device))

        return self._made(encoder, [picture.source for picture in pictures], encode, known)

    def of_texts(self, encoder: Frozen, texts: Sequence[str], *, instruction: str = "") -> FeatureCache:
        """One vector a text.

        Args:
            encoder: The text encoder.
            texts: The texts.
            instruction: What it is told before each.
        """

        def encode(text: Any, some: list[str]) -> Tensor:
            return text.encode(some, instruction=instruction)

        return self._made(encoder, texts, encode, {"instruction": instruction})

    def _made(self, frozen: Frozen, items: Sequence[Any], encode: Callable[[Any, list[Any]], Tensor], known: Mapping[str, Any]) -> FeatureCache:
        name, source = frozen.name, frozen.source
        facts = {"encoder": name, "from": source, "files": _files(source), "items": _digest(map(str, items)), "stored": str(self.stored), **known}
        folder = self.root / f"{name.replace(':', '-').replace('/', '-')}-{_digest([json.dumps(facts, sort_keys=True)])[:12]}"
        found = _opened(folder)
        missing = any_rank(found is None, self.world)  # a rank that comes late may find it written already, and must go with the others all the same
        if found is not None and not missing:
            return found
        log.info("%d vectors of %s are computed once, and kept in %s", len(items), name, folder)
        encoder = frozen.build().to(self.world.device)
        key = {**facts, **encoder.describe(), "weights": fingerprint(encoder, adapters=True)}
        shown = partial(counting, what=f"encoding by {name}")
        progress = shown if self.world.is_main else lambda batches, _: batches
        write_features(
            folder, items, partial(encode, encoder), key=key, dtype=self.stored, batch_size=self.batch_size, world=self.world, progress=progress
        )
        wait_for_all(self.world)
        return FeatureCache(folder)


def fingerprint_of(cache: FeatureCache) -> str:
    """Fingerprint of the encoder that a cache's vectors are of."""
    return str(cache.manifest.key["weights"])


def _opened(folder: Path) -> FeatureCache | None:
    """A finished cache; None if there is none."""
    try:
        return FeatureCache(folder)
    except VLMError:
        return None


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _files(source: str) -> str:
    """A hash of the names, sizes and times of a folder's files, so that other weights in the same place are seen; empty for a hub id and for no source."""
    folder = Path(source)
    if not source or not folder.is_dir():  # an empty path is the working directory
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _digest(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
