"""Tiles to feed a backbone with, and what transformers makes of the same pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm.backbones.vision.base import VisionSpec


@pytest.fixture
def tiles() -> Callable[..., Tensor]:
    """`tiles(32)`: random uint8 tiles of that side."""

    def make(side: int, *, count: int = 2) -> Tensor:
        return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))

    return make


@pytest.fixture
def processed() -> Callable[[Tensor, VisionSpec], Tensor]:
    """Pixel values by transformers' PIL processor, which resizes nothing here."""
    from transformers import SiglipImageProcessorPil

    def process(pixels: Tensor, spec: VisionSpec) -> Tensor:
        processor = SiglipImageProcessorPil(do_resize=False, image_mean=list(spec.mean), image_std=list(spec.std))
        return processor(list(pixels.permute(0, 2, 3, 1).numpy()), return_tensors="pt", input_data_format="channels_last").pixel_values

    return process


@pytest.fixture
def all_values() -> np.ndarray:
    """A picture of 16x16 pixels in which each channel takes every value once."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([values, values.T, values[::-1]], axis=-1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converted weights for this run."""
    return tmp_path_factory.mktemp("cache")
