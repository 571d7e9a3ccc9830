r"""InternVL's JSON lines (OpenGVLab/InternVL, docs "Chat Data Format"): LLaVA's rows with the sizes of the pictures.

    {"id": 0, "image": "a.jpg", "width": 640, "height": 480, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]}

Several pictures are a list, with `width_list` and `height_list`; a row of text has no `image`, or an empty one. InternVL puts a missing `<image>` before the
first question; here such a row is faulty, as everywhere. Stated sizes are not taken over: they may mean the picture before it was turned upright.
"""

from collections.abc import Mapping
from typing import Any

from vlm.data.formats.base import Format, fields_of, read_by_row
from vlm.data.formats.llava import is_multi_image, parse_row, states_sizes
from vlm.data.sample import Sample
from vlm.errors import DataFormatError


def parse_internvl(row: Any, name: str) -> Sample:
    """One row.

    Args:
        row: The decoded JSON value.
        name: Name of a row without `id`.

    Raises:
        DataFormatError: As for LLaVA; also if the lists of sizes and the pictures differ in number.
    """
    sample = parse_row(row, name)
    for key in ("width_list", "height_list"):
        sizes = fields_of(row).get(key)
        if isinstance(sizes, list) and len(sizes) != len(sample.images):
            raise DataFormatError(f"sizes and images differ: {key!r} has {len(sizes)} number(s) for {len(sample.images)} image(s).")
    return sample


def _recognizes(row: Mapping[str, Any]) -> bool:
    return "conversations" in row and states_sizes(row) and not is_multi_image(row)


SPECS = {
    "internvl": Format(
        read=read_by_row(parse_internvl),
        recognizes=_recognizes,
        description="InternVL: as llava, with `width` and `height`, or `width_list` and `height_list`",
    )
}
