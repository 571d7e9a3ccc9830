"""Pictures that lie inside a row, as bytes or as a data URL, to files of their own. Never decodes a picture: its bytes are written as they are.

A file is named by the hash of its content, so that the same picture of many rows is one file, whoever writes it and however often.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Any

from vlm.errors import DataFormatError

DATA_URL = "data:image/"
SUFFIXES = {  # what the bytes of a picture begin with
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}


def store_picture(data: bytes, folder: Path) -> Path:
    """Write the bytes of a picture, unless they are there; returns the file's name below `folder`.

    Raises:
        DataFormatError: If there are no bytes.
    """
    if not data:
        raise DataFormatError("a picture is empty: it has no bytes.")
    digest = hashlib.sha256(data).hexdigest()
    suffix = next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), ".img")
    name = Path(digest[:2]) / f"{digest[:32]}{suffix}"  # 256 folders: one of a million files is slow to list
    target = folder / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        building.write_bytes(data)
        building.replace(target)
    return name


def unpack_pictures(value: Any, folder: Path) -> Any:
    """A row with names of files in the places of its pictures.

    Args:
        value: The row. Pictures are bytes, `{"bytes", "path"}` as Hugging Face writes them, or data URLs.
        folder: Where files are written. Bytes become names below it; data URLs, which stand beside paths of other files, absolute names.

    Raises:
        DataFormatError: If a data URL cannot be decoded, or a picture is empty.
    """
    if isinstance(value, str):
        return str(folder.resolve() / store_picture(data_url_bytes(value), folder)) if value.startswith(DATA_URL) else value
    if isinstance(value, bytes):
        return store_picture(value, folder).as_posix()
    if isinstance(value, list):
        return [unpack_pictures(item, folder) for item in value]
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return store_picture(value["bytes"], folder).as_posix()
        return {key: unpack_pictures(item, folder) for key, item in value.items()}
    return value


def holds_pictures(value: Any) -> bool:
    """Whether a row holds the bytes of a picture."""
    if isinstance(value, dict):
        return any(holds_pictures(item) for item in value.values())
    return isinstance(value, bytes) or (isinstance(value, list) and any(holds_pictures(item) for item in value))


def data_url_bytes(url: str) -> bytes:
    """The bytes of a data URL.

    Raises:
        DataFormatError: If it is not base64.
    """
    kind, _, data = url.partition(",")
    if not kind.endswith(";base64"):
        raise DataFormatError(f"a data URL is not base64: it begins with {kind[:60]!r}.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataFormatError(f"a data URL cannot be decoded: {error}.") from None
