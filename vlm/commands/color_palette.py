"""`vlm color discriminability CONCEPTS` and `vlm color palette CONCEPTS`: what colors can say, and the palette that says it best."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlm.commands.terminal import show_table
from vlm.conf.cli import Positional, Repeated
from vlm.errors import ConfigError, DataFormatError

if TYPE_CHECKING:
    from vlm.color.associations import Associations
    from vlm.color.colors import Colors
    from vlm.color.palette import Observers, Palette


@dataclass(frozen=True, kw_only=True)
class ReadingArguments:
    """Which concepts and colors."""

    concepts: Annotated[tuple[str, ...], Positional] = ()
    """The concepts."""
    associations: Path | None = None
    """CSV file of associations from 0 to 1; None: people's ratings of 70 concepts with the UW-71 colors."""
    rescale: bool = False
    """Stretch each concept's associations to 0 to 1: for a model's cosines, which are no ratings."""
    colors: str = "uw71"
    """The library: uw71 or a file of colors. Where the associations have other colors than the file, they are interpolated from UW-71."""
    floor: bool = False
    """Let associations vary by 0.1 at least, as the lab's later code does."""
    merit: str = "balanced"
    """How people are taken to assign: balanced, isolated or baseline."""
    draws: int = 1000
    """Simulated observers."""
    seed: int = 0
    """Their seed."""
    out: Path | None = None
    """JSON file of the result."""


@dataclass(frozen=True, kw_only=True)
class DiscriminabilityArguments(ReadingArguments):
    """Which concepts, and perhaps a palette of your own."""

    color: Annotated[tuple[str, ...], Repeated] = ()
    """A color of the library by name, once for each concept in their order: how well this palette is read."""


@dataclass(frozen=True, kw_only=True)
class PaletteArguments(ReadingArguments):
    """Which concepts, and what the palette must be."""

    min_delta_e: float = 10.0
    """Least CIELAB difference of two colors of the palette; 0 for any."""


def discriminability(arguments: DiscriminabilityArguments) -> None:
    """Print how well the concepts can be told apart, and with --color how well a palette is read."""
    from rich.markup import escape

    from vlm.color.discriminability import capacity
    from vlm.color.palette import given_palette, pairs, peaks

    associations, library = reading(arguments)
    observers = observers_of(arguments)
    if len(associations.concepts) < 2:
        raise ConfigError("Give two concepts or more: `vlm color discriminability apple banana`.")
    rows, specific = pairs(associations, library, floor=observers.least_spread), peaks(associations)
    count = len(associations.concepts)
    show_table(
        f"{escape(associations.source)}: each two concepts, the hardest first",
        ["concepts", "capacity", "largest semantic distance", "with the colors"],
        [
            [escape(f"{row.one}, {row.other}"), f"{row.capacity:.4f}", f"{row.distance:.4f}", " ".join(map(chip, row.hexes, row.colors))]
            for row in rows
        ],
    )
    show_table(
        "specificity in nats, the higher the fewer colors",
        ["concept", "specificity"],
        [[escape(one), f"{value:.4f}"] for one, value in specific.items()],
    )
    print(f"capacity of the {count} concepts: {capacity(associations.values):.4f} of {count - 1} (generalized total variation)")
    found = given_palette(associations, library, arguments.color, observers) if arguments.color else None
    if found is not None:
        show_palette(found)
    result = {"pairs": [asdict(row) for row in rows], "specificity": specific, "capacity": capacity(associations.values)}
    write_json(arguments.out, result | ({"palette": palette_values(found)} if found else {}))


def palette(arguments: PaletteArguments) -> None:
    """Print the palette and how well it is read."""
    from vlm.color.palette import make_palette

    associations, library = reading(arguments)
    found = make_palette(associations, library, observers_of(arguments), min_delta_e=arguments.min_delta_e)
    show_palette(found)
    write_json(arguments.out, palette_values(found))


def reading(arguments: ReadingArguments) -> "tuple[Associations, Colors]":
    """Associations of the concepts with the colors of the library.

    Raises:
        ConfigError: If no concept is named, or one twice.
        DataFormatError: If one is associated with no color at all.
    """
    from vlm.color.associations import colors_of, interpolated, read_ratings
    from vlm.color.colors import UW71, open_colors

    table = read_ratings() if arguments.associations is None else read_own(arguments.associations, rescale=arguments.rescale)
    if not arguments.concepts:
        raise ConfigError(f"Name the concepts: `vlm color palette apple banana grape`. There are: {', '.join(table.concepts)}.")
    refuse_repeats(arguments.concepts)
    table = table.of(arguments.concepts)
    refuse_repeats(table.concepts)  # in two spellings
    if silent := [one for one, row in zip(table.concepts, table.values, strict=True) if not row.any()]:
        raise DataFormatError(f"{table.source} has 0 for {silent[0]!r} and every color, which says nothing of colors. Leave this concept out.")
    library = open_colors(arguments.colors)
    if arguments.colors == UW71:
        library = colors_of(table)
    if set(library.names) <= set(table.colors) and (arguments.colors == UW71 or arguments.associations is not None):
        return table.at(library.names), library
    table, far = interpolated(table, colors_of(table), library)
    distances = f"the nearest rated color is {far.mean():.0f} away on average, {far.max():.0f} at most"
    print(f"Associations with the {len(library)} colors are interpolated from UW-71; {distances} (CIELAB).")
    return table, library


def refuse_repeats(concepts: Sequence[str]) -> None:
    """Refuse a concept that is there twice."""
    if twice := [one for i, one in enumerate(concepts) if one in concepts[:i]]:
        raise ConfigError(f"The concept {twice[0]!r} is there twice.")


def read_own(path: Path, *, rescale: bool) -> "Associations":
    """Associations from 0 to 1 of a file.

    Raises:
        ConfigError: If they are a model's cosines, and not to be rescaled.
        DataFormatError: If the file cannot be read, or a value is not from 0 to 1.
    """
    from vlm.color.associations import check_range
    from vlm.color.layout import read_prediction
    from vlm.color.prompts import STRENGTH_STYLE

    prediction = read_prediction(path)
    if rescale:
        return prediction.scores.rescaled()
    if prediction.style not in (0, STRENGTH_STYLE):
        raise ConfigError(
            f"{path} holds cosines of {prediction.label}, which are no associations from 0 to 1. --rescale stretches each concept to that."
        )
    return check_range(prediction.scores)


def observers_of(arguments: ReadingArguments) -> "Observers":
    """The simulated observers of the arguments."""
    from vlm.color.palette import Observers

    return Observers(arguments.merit, arguments.draws, arguments.seed, arguments.floor)


def palette_values(found: "Palette") -> dict[str, Any]:
    """A palette for JSON."""
    summary = {"mean_contrast": found.mean_contrast, "chance": found.chance, "capacity": found.capacity, "least_delta_e": found.least_delta_e}
    return {"rows": [asdict(row) for row in found.rows], **summary}


def show_palette(found: "Palette") -> None:
    """Print a palette."""
    from rich.markup import escape

    from vlm.color.report import number

    rows = [
        [
            escape(row.concept),
            chip(row.hex, row.color),
            f"{row.association:.2f}",
            f"{escape(row.rival)} {row.rival_association:.2f}" if row.rival else "",
            f"{100 * row.contrast:.0f}%",
            number(row.least_distance, 2),
        ]
        for row in found.rows
    ]
    show_table("Palette", ["concept", "color", "association", "strongest rival", "read right", "least semantic distance"], rows)
    print(f"{100 * found.mean_contrast:.0f}% of simulated observers' assignments are right (chance {100 * found.chance:.0f}%).")
    if len(found.rows) > 1:
        print(f"The two colors that look most alike differ by {found.least_delta_e:.0f} (CIELAB).")


def chip(code: str, name: str) -> str:
    """A color for the terminal: a block of it, its hex and its name."""
    from rich.markup import escape

    return f"[on {code}]  [/] {code} ({escape(name)})"


def write_json(path: Path | None, values: Any) -> None:
    """Write a result, if a file was asked for, and print where it is."""
    import json

    from vlm.color.files import write_whole

    if path is not None:
        print(write_whole(path, json.dumps(without_nan(values), indent=1, allow_nan=False) + "\n"))


def without_nan(values: Any) -> Any:
    """The same values with None for NaN, which JSON does not have."""
    if isinstance(values, dict):
        return {name: without_nan(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
