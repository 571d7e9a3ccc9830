"""Sets of colors in CIELAB: the 71 of the University of Washington (UW-71), or a file's; as hex, and as pictures of one color.

The conversion is the study's, with the sRGB matrix to four decimals and white D65; hex and pixels are rounded alike.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor

from vlm.color.files import read_rows
from vlm.errors import DataFormatError

UW71 = "uw71"
UW71_FILE = Path(__file__).parent / "uw71" / "uw71_coordinates.csv"
SIDE = 224  # pixels of a swatch
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
LAB_CUT, RGB_CUT = 0.008856, 0.0031308
BARE_HEX = re.compile(r"[0-9a-fA-F]{6}")
LAB_COLUMNS, RGB_COLUMNS, HEX_COLUMNS = ("L", "a", "b"), ("r", "g", "b"), ("hex", "color_hex")


@dataclass(frozen=True)
class Colors:
    """Colors in their order.

    Attributes:
        names: What the columns of score files call them; "1" to "71" for UW-71.
        lab: CIELAB coordinates under D65: L from 0 to 100, a and b about -128 to 128.
    """

    names: tuple[str, ...]
    lab: Float[np.ndarray, "K 3"]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hexes(self) -> list[str]:
        """The colors as `#rrggbb`."""
        return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in self.rgb()]

    def rgb(self) -> list[tuple[int, int, int]]:
        """The colors as 8-bit sRGB."""
        return [(int(r), int(g), int(b)) for r, g, b in np.rint(255 * lab_to_rgb(self.lab))]

    def swatches(self) -> list[Image.Image]:
        """A square picture of each color."""
        return [Image.new("RGB", (SIDE, SIDE), rgb) for rgb in self.rgb()]

    def distances(self) -> Float[np.ndarray, "K K"]:
        """CIELAB color difference of each two (CIE 1976, Euclidean)."""
        return delta_e(self.lab, self.lab)

    def named(self, names: Sequence[str]) -> "Colors":
        """Some of the colors, in the given order.

        Raises:
            DataFormatError: If one is not among them.
        """
        if missing := [name for name in names if name not in self.names]:
            raise DataFormatError(f"No color is named {missing[0]!r}. The {len(self)} colors are {self.names[0]} to {self.names[-1]}.")
        return Colors(tuple(names), self.lab[[self.names.index(name) for name in names]])


def delta_e(one: Float[np.ndarray, "K 3"], other: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "K M"]:
    """CIELAB color difference of each pair (CIE 1976, Euclidean); about 2.3 is just noticeable."""
    return np.linalg.norm(one[:, None] - other[None], axis=-1)


def lab_to_rgb(lab: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
    """CIELAB to sRGB from 0 to 1; what sRGB does not hold is clipped."""
    y = (lab[:, 0] + 16) / 116
    powers = np.stack([lab[:, 1] / 500 + y, y, y - lab[:, 2] / 200], axis=1)
    xyz = WHITE * np.where(powers**3 > LAB_CUT, powers**3, (powers - 16 / 116) / 7.787)
    linear = xyz @ TO_RGB.T
    curved = 1.055 * np.maximum(linear, RGB_CUT) ** (1 / 2.4) - 0.055
    return np.clip(np.where(linear > RGB_CUT, curved, 12.92 * linear), 0, 1)


def rgb_to_lab(rgb: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
    """SRGB from 0 to 1 to CIELAB; undoes `lab_to_rgb`."""
    linear = np.where(rgb > 12.92 * RGB_CUT, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ np.linalg.inv(TO_RGB).T / WHITE
    f = np.where(xyz > LAB_CUT, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def hex_to_lab(codes: Sequence[str]) -> Float[np.ndarray, "K 3"]:
    """Colors as `#rrggbb`, `#rgb` or a name of CSS to CIELAB.

    Raises:
        DataFormatError: If one is none of these.
    """
    return rgb_to_lab(np.array([_rgb_of(code) for code in codes]).reshape(-1, 3) / 255)


def _rgb_of(code: str) -> tuple[int, ...]:
    try:
        rgb = ImageColor.getrgb(f"#{code}" if BARE_HEX.fullmatch(code) else code)
    except ValueError:
        rgb = ()
    if len(rgb) != 3:
        raise DataFormatError(f"{code!r} is no color; write it as #rrggbb or as a name of CSS, such as teal.")
    return rgb


def open_colors(name: str) -> Colors:
    """A set of colors: `uw71`, or a file.

    A file is CSV with columns L, a, b; or r, g, b; or hex (or color_hex); and perhaps a column name; or without a header, lines `L,a,b`, `#rrggbb` or `teal`.
    Colors without names are numbered from 1.

    Raises:
        DataFormatError: If the file cannot be read, or holds something else.
    """
    if name == UW71:
        rows = read_rows(UW71_FILE, what="The file of colors")
        return _with_header([row[2:5] for row in rows], name)
    rows = read_rows(Path(name), what="The file of colors")
    with_header = {*HEX_COLUMNS, "L", "r"} & set(rows[0])
    colors = _with_header(rows, name) if with_header else _without_header(rows, name)
    if len(set(colors.names)) < len(colors):
        twice = next(one for one in colors.names if colors.names.count(one) > 1)
        raise DataFormatError(f"{name} has two colors named {twice!r}.")
    if not np.isfinite(colors.lab).all() or (colors.lab[:, 0] < 0).any() or (colors.lab[:, 0] > 100).any():
        raise DataFormatError(f"{name} has a color with L outside of 0 to 100.")
    return colors


def _with_header(rows: Sequence[Sequence[str]], name: str) -> Colors:
    header, *body = rows
    if short := [number for number, row in enumerate(body, start=2) if len(row) != len(header)]:
        raise DataFormatError(f"Line {short[0]} of {name} has {len(body[short[0] - 2])} cells, its header {len(header)}.")
    cells: Mapping[str, list[str]] = {column: [row[i] for row in body] for i, column in enumerate(header)}
    names = tuple(cells.get("name", _numbers(len(body))))
    if set(LAB_COLUMNS) <= set(cells):
        return Colors(names, _numeric(zip(*(cells[axis] for axis in LAB_COLUMNS), strict=True), name))
    if set(RGB_COLUMNS) <= set(cells):
        return Colors(names, rgb_to_lab(_bytes(zip(*(cells[axis] for axis in RGB_COLUMNS), strict=True), name) / 255))
    column = next((column for column in HEX_COLUMNS if column in cells), None)
    if column is None:
        raise DataFormatError(f"{name} has the columns {', '.join(header)}; expected L, a and b; r, g and b; or hex.")
    return Colors(names, hex_to_lab(cells[column]))


def _without_header(rows: Sequence[Sequence[str]], name: str) -> Colors:
    if strange := [row for row in rows if len(row) not in (1, 3)]:
        raise DataFormatError(
            f"{name} has the line {','.join(strange[0])!r}: expected lines `#rrggbb`, `teal` or `L,a,b`, or a header with hex; L, a and b; or r, g and b."
        )
    lab = [hex_to_lab(row) if len(row) == 1 else _numeric([row], name) for row in rows]
    return Colors(tuple(_numbers(len(rows))), np.concatenate(lab))


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def _bytes(rows: Iterable[Sequence[str]], name: str) -> Float[np.ndarray, "K 3"]:
    values = _numeric(rows, name)
    if ((values < 0) | (values > 255) | (values != np.rint(values))).any():  # NaN is not equal to itself
        raise DataFormatError(f"{name} has an r, g or b that is no whole number from 0 to 255.")
    return values


def _numeric(rows: Iterable[Sequence[str]], name: str) -> Float[np.ndarray, "K 3"]:
    try:
        return np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise DataFormatError(f"{name} holds something that is no number: {error}.") from error
