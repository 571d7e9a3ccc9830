"""The picture that a row names, as the model's tile: from a file, a URL or the row itself, or the reason why not as a status. Knows no table, no model.

Runs in threads: PIL decodes and resizes without the interpreter's lock.
"""

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from vlm.data.fetched import Fetched
from vlm.data.image import PictureTooLargeError, decode_image, to_tiles
from vlm.data.remote import FetchError, is_url, local_path
from vlm.errors import DataFormatError
from vlm.types import ImagePolicy


class Tile(NamedTuple):
    """A picture as the model takes it, and its size as it is stored, upright."""

    pixels: UInt8[Tensor, "3 H W"]
    width: int
    height: int


class Fault(NamedTuple):
    """Why there is no tile: a key of `vlm.score.schema.STATUSES`, and one line. The size is there where the picture could be opened."""

    status: str
    error: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class PictureReader:
    """How the pictures of a job are read.

    Attributes:
        policy: How a picture becomes the model's tile.
        images: local, url or auto; see `vlm.score.job.Job`, as for the rest.
        fetched: What asks for URLs.
        root: Folder of local pictures; None for that of the row's file.
        url_file: Pattern of the file that stands for a URL; empty for none.
        max_bytes: Longest file.
        max_pixels: Largest picture.
    """

    policy: ImagePolicy
    images: str = "local"
    fetched: Fetched = field(default_factory=Fetched)
    root: Path | None = None
    url_file: str = ""
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def read(self, name: str, folder: Path, content: bytes | None = None) -> Tile | Fault:
        """The tile of a picture, or what is wrong with it.

        Args:
            name: A path, a URL, or what the content is called.
            folder: Where a relative path begins if there is no `root`.
            content: The picture itself, if the row holds it.
        """
        try:
            found = self._bytes(name, folder) if content is None else content
            if len(found) > self.max_bytes:
                return Fault("too_large", f"{name[:200]} has {len(found):,} bytes, and {self.max_bytes:,} are allowed. Give a smaller copy.")
            return self._tile(found, name[:200])
        except FetchError as error:
            return Fault("too_large" if error.too_large else "fetch_error", str(error))
        except PictureTooLargeError as error:
            return Fault("too_large", str(error))
        except DataFormatError as error:
            return Fault("decode_error", str(error))

    def _tile(self, content: bytes, name: str) -> Tile | Fault:
        image = decode_image(content, name=name, max_pixels=self.max_pixels)
        try:
            tiles, _ = to_tiles(image, self.policy)
        except DataFormatError as error:
            return Fault("decode_error", str(error), image.width, image.height)
        return Tile(tiles[0], image.width, image.height)

    def _bytes(self, name: str, folder: Path) -> bytes:
        """What a name stands for.

        Raises:
            FetchError: If it may not be read or fetched, or is not there.
        """
        if not is_url(name):
            if self.images == "url":
                raise FetchError(f"{name} is no URL, and --images is url. For paths, take --images local or auto.")
            return self._file(self._path(local_path(name), folder))
        if self.url_file:
            return self._file(self._path(stand_in(name, self.url_file), folder))
        if self.images == "local":
            raise FetchError(f"{name} is a URL, and nothing is fetched. To allow it, take --images url or auto.")
        return self.fetched.bytes_of(name)

    def _path(self, path: Path, folder: Path) -> Path:
        return path if path.is_absolute() else (self.root or folder) / path

    def _file(self, path: Path) -> bytes:
        try:
            mode, size = (found := path.stat()).st_mode, found.st_size
            endless = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
            content = b"" if endless or size > self.max_bytes else path.read_bytes()
        except FileNotFoundError:
            raise FetchError(f"There is no image file {path}.") from None
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise FetchError(f"The image file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        if endless:
            raise FetchError(f"The image file {path} cannot be read: it is a device or a pipe.")
        if size > self.max_bytes:
            raise FetchError(f"{path} has {size:,} bytes, and {self.max_bytes:,} are allowed. Give a smaller copy.", too_large=True)
        return content


def stand_in(url: str, pattern: str) -> Path:
    """The file that a pattern such as `{4}.png` has for a URL, by the parts of the URL between slashes.

    Raises:
        FetchError: If the URL lacks such a part.
    """
    try:
        return Path(pattern.format(*url.split("/")))
    except (AttributeError, LookupError, ValueError) as error:
        raise FetchError(f"{url} has no part for --url-file {pattern} ({error}).") from None
