"""`vlm color run|analyze|report|discriminability|palette`: colors and concepts in dual encoders and in people's ratings.

`run` alone needs a model; what it writes, or any CSV file of concepts by colors, is what the other commands read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlm.color.prompts import NAMES_STYLE
from vlm.commands import color_palette
from vlm.commands.terminal import show_table
from vlm.conf.cli import Positional, Repeated, parse
from vlm.conf.sources import sources_of
from vlm.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from vlm.color.associations import Associations
    from vlm.color.colors import Colors
    from vlm.color.layout import Prediction
    from vlm.color.metrics import Scores
    from vlm.color.report import Compared

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
    """File with a concept a line, for styles 1 to 4; None: the study's 20."""
    color_names: Path | None = None
    """File with a name of a color a line, for style 5; None: the 11 basic color terms."""
    colors: str = "uw71"
    """uw71, or a file of colors: CSV with columns L, a, b; r, g, b; or hex; and perhaps name; or a color a line."""
    image_source: str = ""
    """Folder or hub id of the image encoder's weights, if they are not where the model's name says."""
    text_source: str = ""
    """The same of the text encoder's; both may lie in one folder."""
    out: Path = OUT
    """Folder of all results, laid out as the study's `output`."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    precision: str = "fp32"
    """fp32, as in the study; bf16-mixed, bf16 or auto. The study had the language model of LLM2CLIP alone in bf16."""

    @property
    def styles(self) -> tuple[int, ...]:
        """The styles, each once."""
        return tuple(dict.fromkeys(self.prompt_style or (1,)))


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


def main(argv: Sequence[str], *, load: Callable[..., Any] | None = None) -> None:
    """Run one of the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm color COMMAND [arguments]", "", *(f"  {name:17} {what}" for name, what in SUBCOMMANDS.items())]))
        return
    name, *rest = argv
    commands: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "run": (RunArguments, lambda arguments: run(arguments, load or open_encoder)),
        "analyze": (MetricsArguments, analyze),
        "report": (ReportArguments, report),
        "discriminability": (color_palette.DiscriminabilityArguments, color_palette.discriminability),
        "palette": (color_palette.PaletteArguments, color_palette.palette),
    }
    if name not in commands:
        raise UnknownNameError("command of `vlm color`", name, commands)
    kind, command = commands[name]
    command(parse(kind, rest, prog=f"vlm color {name}", description=SUBCOMMANDS[name]))


def check_request(arguments: RunArguments) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: If they do.
    """
    if not arguments.model:
        raise ConfigError("Say which model: --model NAME, once for each.")
    if sources_of(arguments) and len(arguments.model) > 1:
        raise ConfigError("--image-source and --text-source are of one model: name one --model, and run the others by themselves.")
    if arguments.concepts is not None and set(arguments.styles) == {NAMES_STYLE}:
        raise ConfigError("Style 5 asks for names of colors and for no concepts: give them with --color-names instead of --concepts.")
    if arguments.color_names is not None and NAMES_STYLE not in arguments.styles:
        raise ConfigError("--color-names is for style 5: add --prompt-style 5.")


def open_encoder(name: str, device: str, precision: str, **sources: Any) -> Any:
    """A dual encoder by its own name, or by the study's."""
    from vlm.color.study import MODELS
    from vlm.models.open import open_dual

    return open_dual(MODELS.get(name, name), device=device, precision=precision, **sources)


def run(arguments: RunArguments, load: Callable[..., Any]) -> None:
    """Ask every model in every style, and write swatches, prompts and scores."""
    from vlm.color.colors import UW71, open_colors
    from vlm.color.layout import write_answer, write_inputs
    from vlm.color.prompts import make_prompts, read_concepts
    from vlm.color.study import ask

    check_request(arguments)
    colors, concepts, names = open_colors(arguments.colors), read_concepts(arguments.concepts), read_concepts(arguments.color_names)
    prompts = [make_prompts(style, names if style == NAMES_STYLE else concepts) for style in arguments.styles]
    said: set[Path] = set()
    for name in distinct_models(arguments.model):
        model = load(name, arguments.device, arguments.precision, **sources_of(arguments))
        for own in prompts:
            inputs = write_inputs(arguments.out, own, colors)
            answer = write_answer(arguments.out, name, own, ask(model, own, colors, name=name), colors=arguments.colors)
            for path in (path for path in (*inputs, answer) if path not in said):
                print(path, flush=True)
                said.add(path)
    more = ("" if arguments.out == OUT else f" --out {arguments.out}") + ("" if arguments.colors == UW71 else " --ratings FILE")
    print(f"Compare with people's ratings: vlm color analyze{more}; as a page: vlm color report{more}")


def distinct_models(names: Sequence[str]) -> list[str]:
    """The models, each once.

    Raises:
        ConfigError: If the folders of two would have the same name.
    """
    from vlm.color.layout import folder_name

    folders: dict[str, str] = {}
    for name in dict.fromkeys(one.rstrip("/") for one in names):
        if (other := folders.setdefault(folder_name(name), name)) != name:
            raise ConfigError(f"{other} and {name} have the same folder, {folder_name(name)}; run one of them with another --out.")
    return list(folders.values())


def analyze(arguments: MetricsArguments) -> None:
    """Write the metrics of every prediction, and print their means."""
    from vlm.color.files import write_whole
    from vlm.color.layout import METRICS
    from vlm.color.report import compare

    if arguments.metrics not in METRICS:
        raise ConfigError(f"--metrics is normalized or raw; got {arguments.metrics!r}.")
    ratings, colors, predictions = opened(arguments)
    asked = [one for one in predictions if one.style != NAMES_STYLE]
    compared = [compare(one, ratings, colors, method=arguments.normalize, scale=arguments.scale) for one in asked]
    for one in compared:
        folder = one.prediction.folder(arguments.out, "metrics")
        print(write_whole(folder / METRICS[arguments.metrics], getattr(one, arguments.metrics).as_csv()))
        if arguments.plots or (arguments.plots is None and arguments.metrics == "raw"):
            print(write_plots(one.prediction, ratings, colors, one.prediction.folder(arguments.out, "eval")))
    print_names(predictions, colors)
    if compared:
        print_means(compared, arguments.metrics)


def print_means(compared: "Sequence[Compared]", kind: str) -> None:
    """Print the means of the metrics, raw or normalized, and what is not in them."""
    from rich.markup import escape

    from vlm.color.metrics import WORDS, with_others
    from vlm.color.report import number

    scores: list[Scores] = [getattr(one, kind) for one in compared]
    names = scores[0].names
    rows = [
        [escape(one.label), str(len(own.by_concept)), *(number(own.mean(name), 4) for name in names), number(with_others(one.ratings, one.scores), 4)]
        for one, own in zip(compared, scores, strict=True)
    ]
    show_table(f"{kind} metrics, means over the concepts", ["prediction", "concepts", *names, "PCC others"], rows)
    print("PCC others: the control, mean correlation with people's ratings of the other concepts.")
    if kind == "normalized":
        print("; ".join(f"{name} {WORDS[name]}" for name in names))
    for note in dict.fromkeys(note for one in compared for note in one.notes):
        print(note)


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
            write_whole(folder / name.replace("/", "_"), picture)
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
        ConfigError: If predictions were made with several sets of colors, or with one that nobody rated, or a scale would have no effect.
    """
    from vlm.color.associations import colors_of, read_ratings
    from vlm.color.colors import UW71
    from vlm.color.layout import find_predictions, read_predictions

    if arguments.scale is not None and arguments.normalize != "softmax":
        raise ConfigError(f"--scale is for --normalize softmax; with {arguments.normalize} it has no effect.")
    predictions = read_predictions(arguments.predictions or find_predictions(arguments.out))
    sets = list(dict.fromkeys(one.colors for one in predictions if one.colors))
    if len(sets) > 1 and not arguments.colors:
        raise ConfigError(f"The predictions are about several sets of colors: {', '.join(sets)}. Name files of one set, or give it with --colors.")
    colors, ratings = arguments.colors or (sets[0] if sets else UW71), read_ratings(arguments.ratings)
    if arguments.ratings is None and colors != UW71:
        raise ConfigError(
            f"The predictions are about the colors of {colors}, and the ratings that vlm has about UW-71. Give ratings of these colors with --ratings."
        )
    return ratings, colors_of(ratings, colors), predictions


def print_names(predictions: "Sequence[Prediction]", colors: "Colors") -> None:
    """Print, of style 5, which swatch is most like each name of a color."""
    from rich.markup import escape

    from vlm.color.study import check_names

    for one in (one for one in predictions if one.style == NAMES_STYLE):
        rows = [
            [
                escape(row.name),
                row.swatch,
                "none" if row.hue is None else f"{row.hue:.0f}",
                row.nearest,
                {True: "yes", False: "no", None: ""}[row.right],
            ]
            for row in check_names(one.scores.at(colors.names), colors)
        ]
        show_table(f"{escape(one.label)}: names of colors", ["name", "best swatch", "hue in degrees", "nearest term", "right"], rows)
