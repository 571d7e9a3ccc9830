"""Pictures to square uint8 RGB tiles, by PIL, as the model was trained on them. Normalization belongs to the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import load_image


class VLMImageProcessor(BaseImageProcessor):
    """A picture becomes one tile: squashed, cropped in the middle, padded to a square, or with equal borders and then cropped."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 224,
        mode: str = "squash",
        resample: str = "bicubic",
        fill: Sequence[int] = (127, 127, 127),
        short_side: int | None = None,
        half_pixel: str = "down",
        **kwargs: Any,
    ) -> None:
        """Keep the settings.

        Args:
            size: Side of a tile, in pixels.
            mode: squash, crop, pad or letterbox.
            resample: PIL's name of the filter.
            fill: Color of the padding.
            short_side: Of crop, what the short side is resized to; None for `size`.
            half_pixel: Of crop, how half a pixel of margin is rounded: down, or even.
            kwargs: Of transformers.
        """
        super().__init__(**kwargs)
        self.size, self.mode, self.resample, self.fill = size, mode, resample, list(fill)  # type: ignore[assignment]
        self.short_side, self.half_pixel = short_side, half_pixel

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` [N, 3, size, size] in uint8, of one picture, of a list, or of lists for each prompt."""
        tiles = [np.ascontiguousarray(np.asarray(self._tile(to_rgb(image))).transpose(2, 0, 1)) for image in flat(images)]
        return BatchFeature({"pixel_values": np.stack(tiles)}, tensor_type=return_tensors)

    def _tile(self, image: Image.Image) -> Image.Image:
        if self.mode in ("crop", "letterbox"):
            return self._crop(self._bordered(image) if self.mode == "letterbox" else image)
        return self._resize(self._square(image) if self.mode == "pad" else image, self.size, self.size)

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling[self.resample.upper()])

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(self.fill))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _bordered(self, image: Image.Image) -> Image.Image:
        left, top = ((max(image.size) - side) // 2 for side in image.size)
        bordered = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), tuple(self.fill))
        bordered.paste(image, (left, top))
        return bordered

    def _crop(self, image: Image.Image) -> Image.Image:
        short_side, short = self.short_side or self.size, min(image.size)
        width, height = (short_side if side == short else int(short_side * side / short) for side in image.size)
        left, top = (
            (side - self.size) // 2 if self.half_pixel == "down" and self.mode == "crop" else round((side - self.size) / 2)
            for side in (width, height)
        )
        return self._resize(image, width, height).crop((left, top, left + self.size, top + self.size))


def flat(images: Any) -> list[Any]:
    """Pictures of any nesting as one list."""
    return [image for item in images for image in flat(item)] if isinstance(images, list | tuple) else [images]


def to_rgb(image: Any) -> Image.Image:
    """8-bit RGB: transparent parts become white, 16-bit gray is scaled down. A path or URL is loaded, an array is a picture."""
    if isinstance(image, str):
        image = load_image(image)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) / 257).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
