"""Picture files to square uint8 RGB tiles, by PIL; bit-equal to transformers' PIL image processors. Normalization belongs to the vision backbones."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vlm.errors import DataFormatError
from vlm.types import ImageLayout, ImagePolicy

MAX_ASPECT_RATIO = 100  # of crop, which resizes before it cuts: at most 60 MB for tiles of 448 pixels
TURNED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
WHITE = (255, 255, 255, 255)
UNREADABLE = (  # what PIL raises for broken files: its plugins trust what stands in them
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError, Image.DecompressionBombError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError),
)


class PictureTooLargeError(DataFormatError):
    """A picture of more pixels than its reader allows."""


def load_image(path: Path, *, at_least: int | None = None) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright; of an animation, the first frame.

    Args:
        path: The file.
        at_least: Decode a JPEG at the smallest fraction of its size whose sides are at least so many pixels; None for its full size.

    Raises:
        DataFormatError: If the file is missing, no picture, cut short or broken.
    """
    with _opened(path) as image:
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))  # does nothing for other formats
        return upright(image)


def decode_image(content: bytes, *, name: str, max_pixels: int) -> Image.Image:
    """The picture in the bytes of a file from elsewhere, as 8-bit RGB, upright; its size is read from its head before it is decoded.

    Args:
        content: The bytes.
        name: What it is called in errors.
        max_pixels: Most pixels, width times height.

    Raises:
        DataFormatError: If it is no picture, cut short or broken.
        PictureTooLargeError: If it has more pixels, or so many that PIL takes it for an attack.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            if image.width * image.height <= max_pixels:
                return upright(image)
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(f"{name} is not decoded: {_reason(error)}. Give a smaller copy.") from error
    except UNREADABLE as error:
        raise DataFormatError(f"{name} cannot be read as a picture: {_reason(error)}. Give a JPEG, PNG, WebP or GIF file.") from error
    raise PictureTooLargeError(f"{name} has {width}x{height} pixels, and {max_pixels:,} are allowed. Give a smaller copy.")


def upright(image: Image.Image) -> Image.Image:
    """An opened picture decoded as 8-bit RGB, turned as its EXIF data say; PIL's errors are the caller's."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # copies nothing where it turns nothing
    return to_rgb(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file; what PIL or the system raises meanwhile becomes one line with the remedy."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise DataFormatError(f"There is no image file {path}.") from None
    except UNREADABLE as error:
        raise DataFormatError(
            f"The image file {path} cannot be read: {_reason(error, path)}. Replace the file, or leave it out; `vlm data check` finds all of them."
        ) from error


def _reason(error: Exception, path: Path | None = None) -> str:
    """What PIL or the system says, in one line and without the path."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture, or its beginning is damaged"
    said = getattr(error, "strerror", None) or (str(error) if path is None else str(error).replace(str(path), "the file"))
    return " ".join(said.split()).rstrip(".") or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode of PIL: transparent parts become white, 16-bit gray is scaled down. A picture that is RGB already is not copied.

    Raises:
        DataFormatError: If the picture holds floating-point values, whose range nobody states.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise DataFormatError("The picture holds floating-point values; convert it to 8 or 16 bits.")
    if image.mode.startswith("I"):  # PIL would cut 16-bit values at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) / 257).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image.convert("RGB")


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture in a file, from its head alone.

    Raises:
        DataFormatError: If the file is missing or no picture.
    """
    with _opened(path) as image:
        exif = Image.Image.getexif(image)  # PNG's own would decode the picture, to look for orientation behind it
        turned = exif.get(ExifTags.Base.Orientation, 1) in TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def layout_of(height: int, width: int, policy: ImagePolicy) -> ImageLayout:
    """How the tiles of a picture of that size lie; every mode of today makes one tile."""
    return ImageLayout(grid=(1, 1), size=(height, width))


def to_tiles(image: Image.Image, policy: ImagePolicy) -> tuple[UInt8[Tensor, "N 3 H W"], ImageLayout]:
    """The tiles of a picture, and how they lie.

    Raises:
        DataFormatError: If the picture holds floating-point values, or is too narrow to be cropped.
    """
    image = to_rgb(image)
    layout = layout_of(image.height, image.width, policy)
    square = {"squash": _squash, "crop": _crop, "pad": _pad, "letterbox": _letterbox}[policy.mode](image, policy)
    tile = torch.from_numpy(np.array(square))  # [H, W, 3]
    return tile.permute(2, 0, 1).unsqueeze(0).contiguous(), layout


def to_pixels(images: Sequence[Image.Image], policy: ImagePolicy) -> UInt8[Tensor, "N 3 H W"]:
    """The tiles of several pictures, in their order, as an image encoder takes them.

    Raises:
        DataFormatError: If there is no picture, or one of them cannot be used.
    """
    if not images:
        raise DataFormatError("There is no picture to make pixels of; give at least one.")
    return torch.cat([to_tiles(image, policy)[0] for image in images])


def load_tiles(path: Path, policy: ImagePolicy) -> tuple[UInt8[Tensor, "N 3 H W"], ImageLayout]:
    """The tiles of the picture in a file.

    Raises:
        DataFormatError: If the file cannot be read, or its picture cannot be cut; with the path.
    """
    image = load_image(path, at_least=(policy.short_side or policy.size) if policy.reduced_jpeg else None)
    try:
        tiles, layout = to_tiles(image, policy)
        return tiles, layout_of(*picture_size(path), policy) if policy.reduced_jpeg else layout
    except DataFormatError as error:
        raise DataFormatError(f"The image file {path} cannot be used: {error}") from error


def _resize(image: Image.Image, width: int, height: int, policy: ImagePolicy) -> Image.Image:
    return image.resize((width, height), Image.Resampling[policy.resample.upper()])


def _squash(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    return _resize(image, policy.size, policy.size, policy)


def _crop(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """CLIP's: the short side to `short_side`, the long one rounded down, then the middle."""
    size, short, long = policy.size, min(image.size), max(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise DataFormatError(
            f"A picture of {image.width}x{image.height} pixels is too narrow for --model.resize crop, which takes sides of at most {MAX_ASPECT_RATIO} to 1. "
            "Cut the picture, leave it out, or use squash or pad."
        )
    short_side = policy.short_side or size
    width, height = (short_side if side == short else int(short_side * side / short) for side in image.size)
    left, top = _margin(width - size, policy), _margin(height - size, policy)
    if width > size:  # PIL resizes columns first and rows then, so columns that are cut away need no rows: the same bits in less time
        wide = _resize(image, width, image.height, policy)
        image, width, left = wide.crop((left, 0, left + size, image.height)), size, 0
    return _resize(image, width, height, policy).crop((left, top, left + size, top + size))


def _margin(excess: int, policy: ImagePolicy) -> int:
    """Pixels before the middle part."""
    return excess // 2 if policy.half_pixel == "down" else round(excess / 2)  # Python rounds halves to even numbers, as torchvision does


def _pad(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """LLaVA's `expand2square` (haotian-liu/LLaVA, llava/mm_utils.py), then the resize."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), policy.fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _squash(square, policy)


def _letterbox(image: Image.Image, policy: ImagePolicy) -> Image.Image:
    """Prismatic's `LetterboxPad` and timm's transform (TRI-ML/prismatic-vlms, prismatic/models/backbones/vision/base_vision.py)."""
    side = max(image.size)
    left, top = ((side - length) // 2 for length in image.size)
    bordered = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), policy.fill)
    bordered.paste(image, (left, top))
    return _crop(bordered, replace(policy, half_pixel="even"))
