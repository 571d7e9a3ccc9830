"""`vlm color run|analyze|report|discriminability|palette`: colors and concepts in dual encoders and in people's ratings.

`run` alone needs a model; what it writes, or any CSV file of concepts by colors, is what the other commands read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlm.conf.cli import Positional, Repeated, parse
from vlm.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from vlm.color.associations import Associations
    from vlm.color.colors import Colors
    from vlm.color.layout import Prediction
    from vlm.color.metrics import Scores
    from vlm.color.palette import Observers, Palette

SUBCOMMANDS = {
    "run": "Ask dual encoders how strongly each color goes with each concept.",
    "analyze": "Compare predicted associations with people's ratings, concept by concept.",
    "report": "Write one HTML page: models, prompts and people side by side.",
    "discriminability": "How well concepts can be told apart by color.",
    "palette": "The best color of a library for each concept, and how well people will read the palette.",
}
OUT = Path("runs/color")


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What to ask, and whom."""

    model: Annotated[tuple[str, ...], Repeated] = ()
    """A dual encoder by name or path; once for each. The study's names work: ViT-B/32, ViT-B/16, ViT-L/14, Microsoft/LLM2CLIP."""
    prompt_style: Annotated[tuple[int, ...], Repeated] = ()
    """1 to 5, once for each; none: 1. Style 4 asks for 11 strengths of association, style 5 for names of colors, as a check."""
    concepts: Path | None = None
    """File with a concept a line; None: the study's 20, or in style 5 the basic color terms."""
    colors: str = "uw71"
    """uw71, or a file of colors: CSV with columns L, a, b or hex, and perhaps name; or a color a line."""
    out: Path = OUT
    """Folder of all results, laid out as the study's `output`."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "fp32"
    """fp32, as in the study; bf16-mixed, bf16 or auto."""


@dataclass(frozen=True, kw_only=True)
class AnalyzeArguments:
    """What to compare."""

    predictions: Annotated[tuple[Path, ...], Positional] = ()
    """CSV files with concepts in the first column and a color in each other one; none: all that `vlm color run` wrote to --out."""
    ratings: Path | None = None
    """CSV file of people's ratings, 0 to 1; None: 70 concepts rated with the UW-71 colors."""
    colors: str = ""
    """uw71, or the file of colors that the ratings' columns name; empty: what `vlm color run` was given, or else uw71."""
    normalize: str = "min-shift"
    """How scores become distributions: min-shift, or softmax of the scaled cosines."""
    scale: float | None = None
    """What softmax multiplies scores with; None: the model's own, which `vlm color run` writes beside them."""
    out: Path = OUT
    """Folder of the results."""


@dataclass(frozen=True, kw_only=True)
class MetricsArguments(AnalyzeArguments):
    """What to compare, and how."""

    metrics: str = "normalized"
    """normalized, or raw: the study's, exactly."""
    plots: bool | None = None
    """Write the study's four PNG pictures of each concept; None: with raw metrics."""


@dataclass(frozen=True, kw_only=True)
class ReportArguments(AnalyzeArguments):
    """What to show."""

    concreteness: Path | None = None
    """CSV file with columns Word and Conc.M, as Brysbaert and others published it; None: the values of the study's 20 concepts."""
    page: Path | None = None
    """The HTML file; None: report.html in --out."""


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


def main(argv: Sequence[str], *, load: Callable[[str, str, str], Any] | None = None) -> None:
    """Run one of the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm color COMMAND [arguments]", "", *(f"  {name:17} {what}" for name, what in SUBCOMMANDS.items())]))
        return
    name, *rest = argv
    commands: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "run": (RunArguments, lambda arguments: run(arguments, load or open_encoder)),
        "analyze": (MetricsArguments, analyze),
        "report": (ReportArguments, report),
        "discriminability": (DiscriminabilityArguments, discriminability),
        "palette": (PaletteArguments, palette),
    }
    if name not in commands:
        raise UnknownNameError("command of `vlm color`", name, commands)
    kind, command = commands[name]
    command(parse(kind, rest, prog=f"vlm color {name}", description=SUBCOMMANDS[name]))


def open_encoder(name: str, device: str, precision: str) -> Any:
    """A dual encoder by its own name, or by the study's."""
    from vlm.color.study import MODELS
    from vlm.models.open import open_dual

    return open_dual(MODELS.get(name, name), device=device, precision=precision)


def run(arguments: RunArguments, load: Callable[[str, str, str], Any]) -> None:
    """Ask every model in every style, and write swatches, prompts and scores."""
    from vlm.color.colors import open_colors
    from vlm.color.layout import write_answer, write_inputs
    from vlm.color.prompts import NAMES_STYLE, make_prompts, read_concepts
    from vlm.color.study import ask

    if not arguments.model:
        raise ConfigError("Say which model: --model NAME, once for each.")
    colors, concepts = open_colors(arguments.colors), read_concepts(arguments.concepts)
    prompts = [make_prompts(style, concepts if style != NAMES_STYLE else ()) for style in dict.fromkeys(arguments.prompt_style or (1,))]
    written: list[Path] = []
    for name in dict.fromkeys(one.rstrip("/") for one in arguments.model):
        model = load(name, arguments.device, arguments.precision)
        for own in prompts:
            written += [path for path in write_inputs(arguments.out, own, colors) if path not in written]
            written.append(write_answer(arguments.out, name, own, ask(model, own, colors, name=name), colors=arguments.colors))
    print("\n".join(map(str, written)))
    out = "" if arguments.out == OUT else f" --out {arguments.out}"
    print(f"Compare with people's ratings: vlm color analyze{out}; as a page: vlm color report{out}")


def analyze(arguments: MetricsArguments) -> None:
    """Write the metrics of every prediction, and print their means."""
    from vlm.color.files import write_whole
    from vlm.color.layout import METRICS
    from vlm.color.metrics import WORDS, with_others
    from vlm.color.prompts import NAMES_STYLE
    from vlm.color.report import compare

    if arguments.metrics not in METRICS:
        raise ConfigError(f"--metrics is normalized or raw; got {arguments.metrics!r}.")
    ratings, colors, predictions = opened(arguments)
    measured: list[tuple[str, Scores, float]] = []
    for one in (one for one in predictions if one.style != NAMES_STYLE):
        compared = compare(one, ratings, colors, method=arguments.normalize, scale=arguments.scale)
        scores = getattr(compared, arguments.metrics)
        measured.append((one.label, scores, with_others(compared.ratings, compared.scores)))
        print(write_whole(one.folder(arguments.out, "metrics") / METRICS[arguments.metrics], scores.as_csv()))
        if arguments.plots or (arguments.plots is None and arguments.metrics == "raw"):
            print(write_plots(one, ratings, colors, one.folder(arguments.out, "eval")))
    print_names(predictions, colors)
    if not measured:
        return
    names = measured[0][1].names
    rows = [[label, *(f"{scores.mean(name):.4f}" for name in names), f"{others:.4f}"] for label, scores, others in measured]
    show(f"{arguments.metrics} metrics, means over {len(measured[0][1].by_concept)} concepts", ["prediction", *names, "PCC others"], rows)
    print("PCC others: the control, mean correlation with people's ratings of the other concepts.")
    if arguments.metrics == "normalized":
        print("; ".join(f"{name} {WORDS[name]}" for name in names))


def write_plots(prediction: "Prediction", ratings: "Associations", colors: "Colors", folder: Path) -> Path:
    """Write the study's pictures of every concept, and give their folder."""
    from vlm.color.files import write_whole
    from vlm.color.metrics import aligned
    from vlm.color.plots import draw_concept
    from vlm.commands.preprocess import show_progress

    own, theirs = aligned(ratings, prediction.scores)
    triples = list(zip(own.concepts, own.values, theirs.values, strict=True))
    for concept, people, scores in show_progress(triples, f"Drawing {prediction.label}"):
        for name, picture in draw_concept(concept, people, scores, colors.hexes):
            write_whole(folder / name, picture)
    return folder


def report(arguments: ReportArguments) -> None:
    """Write the page."""
    from vlm.color.files import write_whole
    from vlm.color.prompts import read_concreteness
    from vlm.color.report import render

    ratings, colors, predictions = opened(arguments)
    page = render(predictions, ratings, colors, read_concreteness(arguments.concreteness), method=arguments.normalize, scale=arguments.scale)
    print(write_whole(arguments.page or arguments.out / "report.html", page))


def opened(arguments: AnalyzeArguments) -> "tuple[Associations, Colors, list[Prediction]]":
    """Ratings, their colors, and the predictions.

    Raises:
        ConfigError: If predictions were made with several sets of colors.
    """
    from vlm.color.associations import colors_of, read_ratings
    from vlm.color.layout import find_predictions, read_predictions

    predictions = read_predictions(arguments.predictions or find_predictions(arguments.out))
    sets = list(dict.fromkeys(one.colors for one in predictions if one.colors))
    if len(sets) > 1 and not arguments.colors:
        raise ConfigError(f"The predictions are about several sets of colors: {', '.join(sets)}. Name files of one set, or give it with --colors.")
    ratings = read_ratings(arguments.ratings)
    return ratings, colors_of(ratings, arguments.colors or (sets[0] if sets else "uw71")), predictions


def print_names(predictions: "Sequence[Prediction]", colors: "Colors") -> None:
    """Print, of style 5, which swatch is most like each name of a color."""
    from vlm.color.prompts import NAMES_STYLE
    from vlm.color.study import check_names

    for one in (one for one in predictions if one.style == NAMES_STYLE):
        rows = [
            [row.name, row.swatch, "none" if row.hue is None else f"{row.hue:.0f}", row.nearest, {True: "yes", False: "no", None: ""}[row.right]]
            for row in check_names(one.scores.at(colors.names), colors)
        ]
        show(f"{one.label}: names of colors", ["name", "best swatch", "hue in degrees", "nearest term", "right"], rows)


def discriminability(arguments: DiscriminabilityArguments) -> None:
    """Print how well the concepts can be told apart, and with --color how well a palette is read."""
    from vlm.color.discriminability import capacity
    from vlm.color.palette import given_palette, pairs, peaks

    associations, library = reading(arguments)
    observers = observers_of(arguments)
    if len(associations.concepts) < 2:
        raise ConfigError("Give two concepts or more: `vlm color discriminability apple banana`.")
    rows, specific = pairs(associations, library, floor=observers.least_spread), peaks(associations)
    count = len(associations.concepts)
    show(
        f"{associations.source}: each two concepts, the hardest first",
        ["concepts", "capacity", "largest semantic distance", "with the colors"],
        [[f"{row.one}, {row.other}", f"{row.capacity:.4f}", f"{row.distance:.4f}", " ".join(map(chip, row.hexes, row.colors))] for row in rows],
    )
    show("specificity in nats, the higher the fewer colors", ["concept", "specificity"], [[one, f"{value:.4f}"] for one, value in specific.items()])
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
    """Associations of the concepts with the colors of the library."""
    from vlm.color.associations import check_range, colors_of, interpolated, read_associations, read_ratings
    from vlm.color.colors import UW71, open_colors

    table = read_ratings() if arguments.associations is None else read_associations(arguments.associations)
    if not arguments.concepts:
        raise ConfigError(f"Name the concepts: `vlm color palette apple banana grape`. Rated are: {', '.join(table.concepts)}.")
    if twice := [one for i, one in enumerate(arguments.concepts) if one in arguments.concepts[:i]]:
        raise ConfigError(f"The concept {twice[0]!r} is there twice.")
    table = table.of(arguments.concepts)
    library = open_colors(arguments.colors)
    table = check_range(table.rescaled() if arguments.rescale else table)
    if arguments.colors == UW71 or (arguments.associations is not None and set(library.names) <= set(table.colors)):
        library = colors_of(table, arguments.colors) if set(table.colors) <= set(library.names) else library
        return table.at(library.names), library
    table, far = interpolated(table, colors_of(table), library)
    print(
        f"Associations with the {len(library)} colors are interpolated from UW-71; the nearest rated color is {far.mean():.0f} away on average, {far.max():.0f} at most (CIELAB)."
    )
    return table, library


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
    rows = [
        [
            row.concept,
            chip(row.hex, row.color),
            f"{row.association:.2f}",
            f"{row.rival} {row.rival_association:.2f}" if row.rival else "",
            f"{100 * row.contrast:.0f}%",
            f"{row.least_distance:.2f}",
        ]
        for row in found.rows
    ]
    show("Palette", ["concept", "color", "association", "strongest rival", "read right", "least semantic distance"], rows)
    print(f"{100 * found.mean_contrast:.0f}% of simulated observers' assignments are right (chance {100 * found.chance:.0f}%).")
    print(f"The two colors that look most alike differ by {found.least_delta_e:.0f} (CIELAB).")


def chip(code: str, name: str) -> str:
    """A color for the terminal: a block of it, its hex and its name."""
    return f"[on {code}]  [/] {code} ({name})"


def write_json(path: Path | None, values: Any) -> None:
    """Write a result, if a file was asked for, and print where it is."""
    import json

    from vlm.color.files import write_whole

    if path is not None:
        print(write_whole(path, json.dumps(values, indent=1) + "\n"))


def show(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    from vlm.commands.terminal import console
    from vlm.evaluate.report import Table

    console().print(Table(caption, columns, list(rows)).for_terminal())
