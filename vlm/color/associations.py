"""Tables of concepts by colors: people's ratings and models' scores, read from CSV files of the study's form and of the lab's.

Knows neither where scores come from nor what is done with them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vlm.color.colors import UW71, Colors, delta_e, open_colors
from vlm.color.files import csv_text, read_rows
from vlm.errors import DataFormatError, listed, nearest

UW71_RATINGS = Path(__file__).parent / "uw71" / "human_ratings_70x71.csv"
MOST_LISTED = 80  # concepts in a message
MOST = 1e100  # what sums of squares still hold
NEIGHBORS = 4  # rated colors that the rating of another color is interpolated from


@dataclass(frozen=True)
class Associations:
    """How strongly concepts go with colors.

    Attributes:
        concepts: The rows.
        colors: Names of the columns.
        values: Ratings from 0 to 1, or a model's scores.
        source: Where they come from, for messages and pages.
    """

    concepts: tuple[str, ...]
    colors: tuple[str, ...]
    values: Float[np.ndarray, "C K"]
    source: str

    def row_of(self, concept: str) -> int | None:
        """The row of a concept, None if there is none. Case, spaces and how Unicode composes a letter do not matter, unless rows differ in them alone."""
        if concept in self.concepts:
            return self.concepts.index(concept)
        alike = [i for i, own in enumerate(self.concepts) if _plain(own) == _plain(concept)]
        return alike[0] if len(alike) == 1 else None

    def of(self, concepts: Sequence[str]) -> "Associations":
        """Some of the concepts, in the given order and as this table spells them.

        Raises:
            DataFormatError: If one is not there.
        """
        rows = [row for row in map(self.row_of, concepts) if row is not None]
        if len(rows) < len(concepts):
            missing = next(one for one in concepts if self.row_of(one) is None)
            near = nearest(_plain(missing), self.concepts)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise DataFormatError(
                f"No concept of {self.source} is called {missing!r}.{hint} There are {len(self.concepts)}: {listed(self.concepts, MOST_LISTED)}."
            )
        return replace(self, concepts=tuple(self.concepts[row] for row in rows), values=self.values[rows])

    def at(self, colors: Sequence[str]) -> "Associations":
        """Some of the colors, in the given order.

        Raises:
            DataFormatError: If one is not there.
        """
        if missing := [one for one in colors if one not in self.colors]:
            raise DataFormatError(
                f"{self.source} has no color {missing[0]!r}; its {len(self.colors)} colors are {self.colors[0]} to {self.colors[-1]}."
            )
        return replace(self, colors=tuple(colors), values=self.values[:, [self.colors.index(one) for one in colors]])

    def rescaled(self) -> "Associations":
        """Each concept's weakest color at 0, its strongest at 1: cosines as something like ratings."""
        low, high = self.values.min(1, keepdims=True), self.values.max(1, keepdims=True)
        return replace(self, values=(self.values - low) / np.where(high > low, high - low, 1.0))

    def as_csv(self) -> str:
        """The table as pandas writes the study's: concepts in the first column, which has no name."""
        return csv_text([["", *self.colors], *([one, *row] for one, row in zip(self.concepts, self.values, strict=True))])


def _plain(concept: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", concept).casefold().split())


def read_associations(path: Path) -> Associations:
    """A CSV file with concepts in the first column and a color in each other one.

    Colors numbered from 0 (the lab's ratings) and columns V1, V2, ... (the study's) are numbered from 1, as everywhere here.

    Raises:
        DataFormatError: If it cannot be read, a cell is no finite number, or a concept or color is there twice.
    """
    header, *rows = read_rows(path, what="The table of associations")
    colors = _from_1([name.removeprefix("V") for name in header[1:]])
    if not rows or not colors:
        raise DataFormatError(
            f"{path} is no table of associations: expected concepts in the first column and a color in each other one, separated by commas."
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataFormatError(f"Line {number} of {path} has {len(row)} cells, its header {len(header)}.")
    concepts = tuple(row[0] for row in rows)
    for what, names in (("concepts", concepts), ("colors", colors)):
        if len(set(names)) < len(names):
            raise DataFormatError(f"{path} has two {what} named {next(one for one in names if names.count(one) > 1)!r}.")
    return Associations(concepts, colors, _numbers(rows, path), str(path))


def _from_1(names: Sequence[str]) -> tuple[str, ...]:
    numbered = "0" in names and all(name.isdecimal() for name in names)
    return tuple(str(int(name) + 1) for name in names) if numbered else tuple(names)


def _numbers(rows: Sequence[Sequence[str]], path: Path) -> Float[np.ndarray, "C K"]:
    values = np.array([[_number(cell) for cell in row[1:]] for row in rows])
    if (wrong := ~(np.abs(values) <= MOST)).any():
        row, column = np.argwhere(wrong)[0]
        raise DataFormatError(f"{path} has {rows[row][column + 1]!r} for {rows[row][0]!r}; every cell must be a finite number, at most {MOST:g}.")
    return values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def read_ratings(path: Path | None = None) -> Associations:
    """People's ratings from 0 to 1; None for those that the package has: 70 concepts and the UW-71 colors (github.com/SchlossVRL/gpt-cca, MIT).

    Raises:
        DataFormatError: If the file cannot be read, or a value is not from 0 to 1.
    """
    read = replace(read_associations(path or UW71_RATINGS), source=str(path or "the UW-71 ratings"))
    return check_range(read, remedy="Divide ratings by the highest value of their scale.")


def check_range(associations: Associations, *, remedy: str = "--rescale stretches each concept to that.") -> Associations:
    """The same table.

    Args:
        associations: The table.
        remedy: Ends the message.

    Raises:
        DataFormatError: If a value is not from 0 to 1.
    """
    low, high = associations.values.min(), associations.values.max()
    if low < 0 or high > 1:
        raise DataFormatError(f"Associations of {associations.source} go from {low:.4g} to {high:.4g}; expected 0 to 1. {remedy}")
    return associations


def interpolated(known: Associations, known_colors: Colors, library: Colors) -> tuple[Associations, Float[np.ndarray, " K"]]:
    """Associations with other colors, from those with the nearest known ones (Shepard's inverse squared distances in CIELAB, 4 neighbors).

    Args:
        known: Associations with all of `known_colors`, by name.
        known_colors: Where these are.
        library: The other colors.

    Returns:
        The associations, and of each color how far the nearest known one is (CIE 1976).
    """
    values = known.at(known_colors.names).values
    distances = delta_e(library.lab, known_colors.lab)
    near = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBORS]
    weights = 1 / np.maximum(np.take_along_axis(distances, near, 1), 1e-6) ** 2
    weights /= weights.sum(1, keepdims=True)
    mixed = np.einsum("ckn,kn->ck", values[:, near], weights)
    return replace(known, colors=library.names, values=mixed), distances.min(1)


def colors_of(associations: Associations, colors: str = UW71) -> Colors:
    """The colors of a table's columns, in their order.

    Args:
        associations: The table.
        colors: `uw71`, or the file that the columns name colors of.

    Raises:
        DataFormatError: If the colors have other names.
    """
    known = open_colors(colors)
    if unknown := [name for name in associations.colors if name not in known.names]:
        raise DataFormatError(
            f"{associations.source} has a color {unknown[0]!r}, which {colors} lacks ({known.names[0]} to {known.names[-1]}). "
            "Give the file of its colors with --colors."
        )
    return known.named(associations.colors)
