"""Pictures as callers of the Python API give them (PIL's, paths, URLs, the bytes of a file, arrays), as 8-bit RGB, upright. Knows no model.

A photograph that `Image.open` gave lies as the camera saw it; it is turned here as `vlm.data.image.load_image` turned those of the training.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vlm.data.image import UNREADABLE, decode_image, to_rgb
from vlm.data.remote import FetchRules, open_picture
from vlm.errors import DataFormatError, VLMError

WANTED = "Give a picture of PIL, a path, a URL, the bytes of a file, or a uint8 array of height x width x 3."


def as_pictures(given: Any) -> list[Image.Image]:
    """Pictures from what a caller gives: one of them, or any number.

    Args:
        given: A picture, or an iterable of pictures, each as `as_picture` takes it.

    Raises:
        FetchError, DataFormatError: See `as_picture`.
    """
    if isinstance(given, Iterable) and not isinstance(given, Image.Image | str | bytes | np.ndarray):
        return [as_picture(one) for one in given]
    return [as_picture(given)]


def as_picture(given: Any) -> Image.Image:
    """One picture, upright.

    Args:
        given: A picture of PIL, a path or URL (`vlm.data.remote.open_picture`; of public addresses alone), the bytes of a file, or a uint8 array
            of height x width, with 3 channels, 4 with opacity, or none for gray.

    Raises:
        FetchError: If a URL cannot be fetched.
        DataFormatError: If it is none of these, or cannot be read.
    """
    if isinstance(given, Image.Image):
        return _upright(given)
    if isinstance(given, str | Path):
        return open_picture(str(given))
    if isinstance(given, bytes):
        return decode_image(given, name=f"A picture of {len(given):,} bytes", max_pixels=FetchRules.max_pixels)
    if isinstance(given, np.ndarray):
        if given.dtype == np.uint8 and 0 not in given.shape and (given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))):
            return to_rgb(Image.fromarray(given))
        raise DataFormatError(f"An array of {given.dtype} of shape {given.shape} is no picture. {WANTED}")
    raise DataFormatError(f"A {type(given).__name__} is no picture. {WANTED}")


def _upright(image: Image.Image) -> Image.Image:
    """The caller's own picture stays as it is."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except VLMError:
        raise
    except UNREADABLE as error:
        raise DataFormatError(f"The picture {getattr(image, 'filename', '')!r} cannot be read: {error}. Give another one.") from error
