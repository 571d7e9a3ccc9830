"""Texts with pictures between them, as in OBELICS (HuggingFaceM4/OBELICS, arXiv:2306.16527). Fetches nothing.

    {"images": [null, "a.jpg", null], "texts": ["Dogs bark.", null, "Cats do not."]}

Both lists are equally long, and at each place one of them has a value. A row is one document, all of it trained. OBELICS names its pictures by URL: a local file
of the same name is taken, found in a folder `images` beside the file. A picture that is not found leaves no trace; a row all of whose pictures are
URLs without a file is faulty.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vlm.data.formats.base import Format, fields_of, finished, image_of, is_url, list_of, parse_rows, shown, text_of
from vlm.data.sample import Row, Sample
from vlm.errors import DataFormatError
from vlm.messages import IMAGE_PLACEHOLDER, Message

IMAGE_FOLDER = Path("images")  # beside the file
BETWEEN = "\n\n"  # as between the paragraphs of OBELICS's texts

Find = Callable[[str], Path | None]


def read_interleaved(path: Path, *, pictures: Path | None = None, find: Find | None = None) -> Iterator[Row]:
    """Rows of a file; faulty ones are `Dropped`.

    Args:
        path: A JSON or Parquet file, or a folder of Parquet files.
        pictures: Folder for pictures that lie inside the rows.
        find: The path of a picture by its name or URL, or None if there is none; a relative path is relative to the file's folder. None looks
            beside the file, for URLs in `images/`.

    Raises:
        DataFormatError: If the file cannot be read.
    """
    root = path if path.is_dir() else path.parent
    return parse_rows(path, partial(parse_row, find=find or partial(_find, roots=(root, *([pictures] if pictures else [])))), pictures=pictures)


def parse_row(row: Any, name: str, *, find: Find) -> Sample:
    """One row.

    Args:
        row: The decoded value.
        name: Name of a row without `id`.
        find: The path of a picture by its name or URL, or None if there is none.

    Raises:
        DataFormatError: If the lists do not fit together, nothing is left of them, or pictures are URLs without a file.
    """
    row = fields_of(row)
    names, texts = list_of(row, "images"), list_of(row, "texts")
    if len(names) != len(texts):
        raise DataFormatError(f"texts and images are not equally many: 'texts' has {len(texts)} places, 'images' {len(names)}.")
    parts: list[str] = []
    images: list[Path] = []
    for i, (image, text) in enumerate(zip(names, texts, strict=True), start=1):
        if image is not None and text is not None:
            raise DataFormatError(f"a place has both a text and an image: place {i} has {shown(text)} and {shown(image)}.")
        if text is not None:
            parts.append(text_of(text, "a text"))
        elif image is not None and (found := _found(image, find)):
            parts.append(IMAGE_PLACEHOLDER)
            images.append(found)
    urls = [image for image in names if isinstance(image, str) and is_url(image)]
    if urls and not images and len(urls) == sum(image is not None for image in names):
        raise DataFormatError(
            f"all images are URLs: the first is {shown(urls[0])}. Download them into a folder 'images' beside the file, by the last part of the URL."
        )
    document = BETWEEN.join(part for part in parts if part)
    if not document:
        raise DataFormatError("the document is empty: no text and no image is left.")
    return finished(row, name, images, [Message("document", document)])


def _found(image: Any, find: Find) -> Path | None:
    if isinstance(image, str) and is_url(image):
        return find(image)
    return find(image_of(image).as_posix())


def _find(name: str, *, roots: tuple[Path, ...]) -> Path | None:
    """A picture's path as the rows state it, if there is such a file below one of the folders."""
    path = IMAGE_FOLDER / Path(unquote(urlsplit(name).path)).name if is_url(name) else Path(name)
    return path if any((root / path).is_file() for root in roots) else None


def _recognizes(row: Mapping[str, Any]) -> bool:
    texts = row.get("texts")
    return isinstance(row.get("images"), list) and isinstance(texts, list) and not (texts and isinstance(texts[0], dict))


SPECS = {
    "interleaved": Format(
        read=read_interleaved,
        recognizes=_recognizes,
        description="documents as in OBELICS: `texts` and `images`, one of them null at each place",
        aliases=("obelics",),
    )
}
