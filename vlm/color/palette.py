"""A designer's answer: concepts and a library of colors in, the palette out, and how well people will read it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.color.associations import Associations, check_range
from vlm.color.colors import Colors
from vlm.color.discriminability import FLOOR, assign_apart, capacity, pairwise_distances, semantic_contrast, semantic_distances, specificity
from vlm.errors import ConfigError

MOST_DRAWS = 1_000_000  # a share is then known to .0005


@dataclass(frozen=True)
class PaletteRow:
    """A concept and its color.

    Attributes:
        concept: The concept.
        color: Name of the color.
        hex: The color.
        association: How strongly people associate them, 0 to 1.
        rival: The concept of the palette that goes with this color most, beside its own; empty for a palette of one.
        rival_association: How strongly.
        contrast: Share of simulated observers who give the concept this color.
        least_distance: Semantic distance to the concept that is told apart worst; NaN for a palette of one.
    """

    concept: str
    color: str
    hex: str
    association: float
    rival: str
    rival_association: float
    contrast: float
    least_distance: float


@dataclass(frozen=True)
class Palette:
    """A palette.

    Attributes:
        rows: A color for each concept.
        capacity: Generalized total variation of the concepts over the whole library, 0 to C - 1: what any palette could reach.
        least_delta_e: CIELAB difference of the two colors that look most alike; NaN for a palette of one.
    """

    rows: Sequence[PaletteRow]
    capacity: float
    least_delta_e: float

    @property
    def mean_contrast(self) -> float:
        """Mean of the concepts' contrasts."""
        return float(np.mean([row.contrast for row in self.rows]))

    @property
    def chance(self) -> float:
        """Contrast of a palette that says nothing."""
        return 1 / len(self.rows)


@dataclass(frozen=True)
class Observers:
    """How people's reading of a palette is simulated.

    Attributes:
        merit: balanced, isolated or baseline.
        draws: How many observers.
        seed: Their seed.
        floor: True for a least spread of associations of 0.1, as in the lab's later code.
    """

    merit: str = "balanced"
    draws: int = 1000
    seed: int = 0
    floor: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= MOST_DRAWS:
            raise ConfigError(f"--draws is from 1 to {MOST_DRAWS:,}; got {self.draws}.")
        if self.seed < 0:
            raise ConfigError(f"--seed is not below 0; got {self.seed}.")

    @property
    def least_spread(self) -> float:
        """The least spread of an association."""
        return FLOOR if self.floor else 0.0


def make_palette(associations: Associations, library: Colors, observers: Observers, *, min_delta_e: float = 0.0) -> Palette:
    """The best color for each concept, and how well the palette is read.

    Args:
        associations: Concepts by the colors of the library, 0 to 1.
        library: The colors.
        observers: Simulated readers.
        min_delta_e: Least difference of two colors.

    Raises:
        ConfigError: If there are too few colors, or the difference is below 0 or no number.
        DataFormatError: If an association is not from 0 to 1.
    """
    if not 0 <= min_delta_e < float("inf"):
        raise ConfigError(f"--min-delta-e is a color difference, 0 or more; got {min_delta_e:g}.")
    table = check_range(associations).at(library.names)
    chosen = assign_apart(table.values, library.distances(), min_delta_e, observers.merit)
    return read_palette(table, library, chosen.tolist(), observers)


def given_palette(associations: Associations, library: Colors, names: Sequence[str], observers: Observers) -> Palette:
    """How well a palette of your own is read: the first color for the first concept, and so on.

    Raises:
        ConfigError: If there is not one color for each concept.
        DataFormatError: If a color is not in the library, or an association not from 0 to 1.
    """
    if len(names) != len(associations.concepts):
        raise ConfigError(f"{len(associations.concepts)} concepts and {len(names)} colors; give one --color for each concept, in the same order.")
    table = check_range(associations).at(library.names)
    library.named(names)
    return read_palette(table, library, [library.names.index(name) for name in names], observers)


def read_palette(table: Associations, library: Colors, chosen: Sequence[int], observers: Observers) -> Palette:
    """How well people read the palette of these columns."""
    own = table.values[:, list(chosen)]
    contrast = semantic_contrast(own, kind=observers.merit, draws=observers.draws, seed=observers.seed, floor=observers.least_spread)
    between = pairwise_distances(own, floor=observers.least_spread) + np.diag(np.full(len(own), np.nan))
    rows = []
    for i, column in enumerate(chosen):
        others = np.where(np.arange(len(own)) == i, -np.inf, own[:, i])
        rival = int(others.argmax()) if len(own) > 1 else i
        rows.append(
            PaletteRow(
                concept=table.concepts[i],
                color=library.names[column],
                hex=library.hexes[column],
                association=float(own[i, i]),
                rival=table.concepts[rival] if len(own) > 1 else "",
                rival_association=float(own[rival, i]) if len(own) > 1 else float("nan"),
                contrast=float(contrast[i]),
                least_distance=float(np.nanmin(between[i])) if len(own) > 1 else float("nan"),
            )
        )
    distances = library.distances()[np.ix_(chosen, chosen)][~np.eye(len(own), dtype=bool)]
    return Palette(rows, capacity(table.values), float(distances.min()) if len(own) > 1 else float("nan"))


@dataclass(frozen=True)
class PairRow:
    """Two concepts, and the two colors that tell them apart best.

    Attributes:
        one: A concept.
        other: Another one.
        capacity: Total variation of the two, 0 to 1.
        distance: The largest semantic distance that two colors reach, 0 to 1.
        colors: The names of these colors, for `one` and for `other`.
        hexes: The colors.
    """

    one: str
    other: str
    capacity: float
    distance: float
    colors: tuple[str, str]
    hexes: tuple[str, str]


def pairs(associations: Associations, library: Colors, *, floor: float = 0.0) -> list[PairRow]:
    """Each two concepts, the ones that are told apart worst first."""
    table, found = check_range(associations).at(library.names), []
    for i, one in enumerate(table.concepts):
        for j in range(i + 1, len(table.concepts)):
            values = table.values[[i, j]]
            distances = semantic_distances(values[0], values[1], floor=floor)
            first, second = (int(at) for at in np.unravel_index(distances.argmax(), distances.shape))
            if values[0, first] + values[1, second] < values[0, second] + values[1, first]:
                first, second = second, first
            names, hexes = (library.names[first], library.names[second]), (library.hexes[first], library.hexes[second])
            found.append(PairRow(one, table.concepts[j], capacity(values), float(distances.max()), names, hexes))
    return sorted(found, key=lambda row: row.distance)


def peaks(associations: Associations) -> dict[str, float]:
    """Specificity of each concept, in nats: -ln K if it goes with all K colors alike, 0 if with one alone."""
    return dict(zip(associations.concepts, specificity(associations.values).tolist(), strict=True))
