"""Zero-shot classification and retrieval of several models side by side: one HTML page, and results with CLIP_benchmark's keys as JSON.

Nothing on the page is loaded from elsewhere. Knows numbers and pictures, not how they came about.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vlm.data.benchmarks.base import Picture
from vlm.errors import MissingPackageError
from vlm.evaluate import retrieval, zero_shot
from vlm.evaluate.bootstrap import Score
from vlm.evaluate.curves import COLORS, FAINT, INK
from vlm.evaluate.embedder import Unreadable
from vlm.evaluate.neighbors import Query, of_retrieval, of_zero_shot
from vlm.evaluate.report import Table
from vlm.evaluate.retrieval import Retrieval
from vlm.evaluate.run_report import small_picture
from vlm.evaluate.zero_shot import ZeroShot, ZeroShotResult, average_precisions
from vlm.pages import filled, write_whole

WORDS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean recall per class",
    "mean_average_precision": "mean average precision",
}
DIRECTIONS = {"image": "caption to picture", "text": "picture to caption"}
NONE = "\N{EN DASH}"
EXAMPLES = 8  # queries in each direction
SHOWN_CLASSES = 40  # rows of the table of classes before it is folded
DRAWN_CLASSES = 40  # of a confusion picture; of more classes, those that are confused most
WIDE = 22  # classes; the picture of more is not readable at half the page's width
THUMBNAIL = 200  # pixels
REMEDY = "Name another folder with --out."
LISTED = 20  # unreadable pictures on the page; all are in details.json


@dataclass(frozen=True)
class ClassRow:
    """How well one class is known.

    Attributes:
        name: The class.
        count: Its pictures.
        shares: Recall, or average precision, of each model, in percent; NaN without pictures.
        mistaken: What each model most often takes it for.
    """

    name: str
    count: int
    shares: Sequence[float]
    mistaken: Sequence[str]


def metric_words(name: str) -> str:
    """A metric as tables call it."""
    if name in WORDS:
        return WORDS[name]
    direction, _, k = name.partition("_retrieval_recall@")
    return f"{DIRECTIONS[direction]} R@{k}"


def score_table(measured: ZeroShot | Retrieval) -> Table:
    """Models side by side in percent, with intervals, and chance in the last row."""
    names = list(measured.results[0].scores)
    chance = measured.results[0].scores
    rows = [[result.model, *(_with_interval(result.scores[name]) for name in names)] for result in measured.results]
    rows.append(["chance", *(_percent(chance[name].chance) for name in names)])
    return Table(f"{measured.data.name}: % with 95 % intervals", ("model", *map(metric_words, names)), rows)


def _with_interval(score: Score) -> str:
    if math.isnan(score.value):
        return NONE
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def _percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{100 * share:.3g}"


def results_json(measured: ZeroShot | Retrieval, *, language: str = "en") -> list[dict[str, Any]]:
    """One result a model, with the keys of CLIP_benchmark's files; what is not defined is NaN there too."""
    task = zero_shot.TASK if isinstance(measured, ZeroShot) else retrieval.TASK
    return [
        {
            "dataset": measured.data.name,
            "model": result.model,
            "pretrained": "",
            "task": task,
            "metrics": {name: score.value for name, score in result.scores.items()},
            "language": language,
        }
        for result in measured.results
    ]


def write_results(folder: Path, measured: ZeroShot | Retrieval, *, notes: Sequence[str] = ()) -> list[Path]:
    """Write one JSON file a model as CLIP_benchmark does, `details.json` with intervals, chance and unreadable pictures, and `report.html`.

    Args:
        folder: Where they go; made if it is missing.
        measured: What was measured.
        notes: What a reader must know besides, such as pictures that were trained on.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        ConfigError: If a file cannot be written.
    """
    details = {
        "dataset": measured.data.name,
        "num_pictures": len(measured.data.pictures),
        "notes": list(notes),
        "unreadable": [asdict(fault) for fault in measured.unreadable],
        "models": {result.model: {name: asdict(score) for name, score in result.scores.items()} for result in measured.results},
        **({"classes": [asdict(row) for row in class_rows(measured)]} if isinstance(measured, ZeroShot) else {}),
    }
    files = {**_named(results_json(measured)), "details.json": details}
    written = [write_whole(folder / name, json.dumps(content, indent=1) + "\n", remedy=REMEDY) for name, content in files.items()]
    return [
        *written,
        write_whole(folder / "report.html", render(measured, notes=notes), remedy=REMEDY),
    ]  # last: the numbers stay if there is no matplotlib


def _named(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by file; models whose names are spelled alike as files get a number."""
    files: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(results, start=1):
        name = f"{file_name(row['model'])}_{file_name(row['dataset'])}_{row['task']}"
        files[f"{name}.json" if f"{name}.json" not in files else f"{name}-{number}.json"] = row
    return files


def file_name(name: str) -> str:
    """A name without what file names cannot hold."""
    return re.sub(r"[^\w.@+-]+", "-", name).strip("-")


def render(measured: ZeroShot | Retrieval, *, notes: Sequence[str] = ()) -> str:
    """The page.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    shared = {
        "table": score_table(measured),
        "models": [result.model for result in measured.results],
        "colors": [COLORS[i % len(COLORS)] for i in range(len(measured.results))],
        "notes": [*notes, *_unreadable_note(measured.unreadable, len(measured.data.pictures))],
        "unreadable": measured.unreadable[:LISTED],
        "num_unreadable": len(measured.unreadable),
    }
    own = _zero_shot_page(measured) if isinstance(measured, ZeroShot) else _retrieval_page(measured)
    return filled(Path(__file__).with_name("contrastive_report.html.j2"), own | shared)


def _unreadable_note(unreadable: Sequence[Unreadable], num_pictures: int) -> list[str]:
    if not unreadable:
        return []
    return [f"{len(unreadable):,} of {len(unreadable) + num_pictures:,} pictures cannot be read and are not measured."]


def _zero_shot_page(measured: ZeroShot) -> dict[str, Any]:
    data, examples = measured.data, of_zero_shot(measured, EXAMPLES)
    several = data.labels.ndim == 2
    rows = class_rows(measured)
    return {
        "title": f"Zero-shot classification: {data.name}",
        "facts": f"{len(data.pictures):,} pictures, {len(data.class_names):,} classes, {measured.num_templates} prompt(s) a class",
        "classes": rows[:SHOWN_CLASSES],
        "more_classes": rows[SHOWN_CLASSES:],
        "class_measure": "average precision" if several else "recall",
        "confusions": [confusion_picture(result, data.class_names) for result in measured.results if result.confusion is not None],
        "to_pictures_title": "Classes, and the pictures nearest to them",
        "to_texts_title": "Pictures, and the classes nearest to them",
        **_examples(examples.to_pictures, examples.to_texts, data.pictures, data.class_names),
    }


def _retrieval_page(measured: Retrieval) -> dict[str, Any]:
    data, examples = measured.data, of_retrieval(measured, EXAMPLES)
    return {
        "title": f"Retrieval: {data.name}",
        "facts": f"{len(data.pictures):,} pictures, {len(data.captions):,} captions",
        "classes": [],
        "more_classes": [],
        "class_measure": "",
        "confusions": [],
        "to_pictures_title": "Captions, and the pictures nearest to them",
        "to_texts_title": "Pictures, and the captions nearest to them",
        **_examples(examples.to_pictures, examples.to_texts, data.pictures, data.captions),
    }


def _examples(to_pictures: Sequence[Query], to_texts: Sequence[Query], pictures: Sequence[Picture], texts: Sequence[str]) -> dict[str, Any]:
    """Queries with the pictures and texts that the page shows, each picture stored once."""
    numbers = {query.number for query in to_texts} | {found.item for query in to_pictures for row in query.found.values() for found in row}
    shown = {number: small_picture(pictures[number].open(), THUMBNAIL) for number in sorted(numbers)}
    return {"to_pictures": to_pictures, "to_texts": to_texts, "pictures": shown, "texts": texts}


def class_rows(measured: ZeroShot) -> list[ClassRow]:
    """Recall of each class, or average precision where a picture may be of several; the worst first, classes without pictures last."""
    names, labels = measured.data.class_names, measured.data.labels
    counts = labels.sum(0) if labels.ndim == 2 else labels.bincount(minlength=len(names))
    shares = [_class_shares(result, labels) for result in measured.results]
    mistaken = [_mistaken(result.confusion, names) for result in measured.results]
    rows = [
        ClassRow(name, int(counts[i]), [float(own[i]) for own in shares], [own[i] if own else "" for own in mistaken]) for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (not row.count, sum(row.shares) if row.count else 0.0))


def _class_shares(result: ZeroShotResult, labels: Tensor) -> list[float]:
    if result.confusion is None:
        counts = labels.sum(0)
        return torch.where(counts > 0, 100 * average_precisions(result.similarity, labels), math.nan).tolist()
    return (100 * result.confusion.diagonal().double() / result.confusion.sum(1)).tolist()


def _mistaken(confusion: Int[Tensor, "C C"] | None, names: Sequence[str]) -> list[str]:
    """What each class is most often taken for."""
    if confusion is None:
        return []
    wrong = confusion.clone().fill_diagonal_(0)
    most, where = wrong.max(1)
    return [f"{names[at]} ({count})" if count else "" for count, at in zip(most.tolist(), where.tolist(), strict=True)]


def confusion_picture(result: ZeroShotResult, names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix in shares of the true class as SVG, what it shows, and whether it needs the width of the page.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    assert result.confusion is not None
    shown = confused_classes(result.confusion)
    part = result.confusion[shown][:, shown].double() / result.confusion.sum(1).clamp(min=1)[shown, None]
    everything = len(shown) == len(names)
    title = result.model if everything else f"{result.model}: the {len(shown)} classes that are confused most, of {len(names):,}"
    return {"title": title, "svg": _draw(part, [names[i] for i in shown]), "wide": len(shown) > WIDE}


def confused_classes(confusion: Int[Tensor, "C C"], most: int = DRAWN_CLASSES) -> list[int]:
    """All classes, or those with the most confusions with one other class, in their order."""
    if len(confusion) <= most:
        return list(range(len(confusion)))
    wrong = confusion.clone().fill_diagonal_(0)
    worst = torch.maximum(wrong.max(0).values, wrong.max(1).values)
    return sorted(worst.sort(descending=True, stable=True).indices[:most].tolist())


def _draw(shares: Tensor, names: Sequence[str]) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", needed_for="The report", extra="report") from None
    style: Mapping[str, Any] = {
        "font.size": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "svg.fonttype": "none",
        "svg.hashsalt": "vlm",
    }
    with rc_context({**style, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK}):
        side = 1.6 + 0.155 * max(len(names), 12)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axis = figure.subplots()
        shade = LinearSegmentedColormap.from_list(
            "shade", [(*_rgb(COLORS[0]), 0.0), (*_rgb(COLORS[0]), 1.0)]
        )  # clear where nothing is: any page's color
        drawn = axis.imshow(shares.numpy(), cmap=shade, vmin=0, vmax=1, interpolation="nearest")
        axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
        axis.set_xticklabels(names, rotation=90)
        axis.set_yticklabels(names)
        figure.colorbar(drawn, ax=axis, shrink=0.6, label="share of the true class")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
