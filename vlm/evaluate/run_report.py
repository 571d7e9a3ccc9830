"""One HTML page about one run, or about several beside each other: numbers, curves, answers to validation pictures, settings. Nothing is loaded from elsewhere."""

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.evaluate.answer_match import exact_match
from vlm.evaluate.curves import draw_panels
from vlm.evaluate.run_record import RunRecord
from vlm.pages import filled, write_whole
from vlm.tracking.console import duration

if TYPE_CHECKING:
    from PIL import Image

LAST = 10  # logged steps whose mean loss stands for the end of a run: one step's is mostly noise
NONE = "\N{EN DASH}"
SIDE = 320  # pixels of a picture's long side on the page
SMALL = 96  # pixels; smaller pictures are stored without loss and drawn with visible pixels


@dataclass(frozen=True)
class Answer:
    """What one run said about a picture, latest first."""

    run: str
    latest: str
    right: bool
    earlier: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Card:
    """A validation picture with every run's answer."""

    picture: str
    pixelated: bool
    missing: str
    question: str
    reference: str
    answers: Sequence[Answer]


def numbers(run: RunRecord) -> dict[str, str]:
    """What a run came to, in words; without what it has no values for."""
    last = [value for _, value in run.series("loss")[-LAST:]]
    planned = run.settings.get("stage.max_steps")
    found = {
        "steps": f"{run.last_step:,}{f' of {planned:,}' if planned else ''}",
        f"training loss, last {len(last)} logged": f"{statistics.fmean(last):.3f}" if last else "",
        "validation loss": _latest(run, "validation_loss", "{:.3f}"),
        **{_words(key): _latest(run, key, "{:.2f}") for key in run.keys if key.startswith("validation/")},
        "tokens a second": _middle(run, "tokens_per_second", "{:,.0f}"),
        "pictures a second": _middle(run, "images_per_second", "{:,.1f}"),
        "model FLOPs utilization": _middle(run, "mfu", "{:.1f} %", 100.0),
        "TFLOP/s": _middle(run, "flops_per_second", "{:,.3g}", 1e-12),
        "seconds a step": _middle(run, "seconds_per_step", "{:.3g}"),
        "time in steps": _time(run),
        **{f"{key.removesuffix('_share').replace('_', ' ')}, mean": _average(run, key) for key in run.keys if key.endswith("_share")},
        "memory of the process, most": _most(run, "system/rss_gb"),
        "memory on the GPU, most": _most(run, "system/gpu_peak_gb"),
    }
    return {name: value for name, value in found.items() if value}


def _words(key: str) -> str:
    return key.replace("/", " ").replace("_", " ")


def _latest(run: RunRecord, key: str, form: str) -> str:
    points = run.series(key)
    return form.format(points[-1][1]) if points else ""


def _middle(run: RunRecord, key: str, form: str, scale: float = 1.0) -> str:
    values = [value * scale for _, value in run.series(key)]
    return form.format(statistics.median(values)) if values else ""


def _average(run: RunRecord, key: str) -> str:
    values = [value for _, value in run.series(key)]
    return f"{100 * statistics.fmean(values):.1f} %"


def _most(run: RunRecord, key: str) -> str:
    values = [value for _, value in run.series(key)]
    return f"{max(values):.2f} GB" if values else ""


def _time(run: RunRecord) -> str:
    """Of all steps, those between logged ones taken for as long as these."""
    seconds = [value for _, value in run.series("seconds_per_step")]
    return duration(statistics.fmean(seconds) * run.last_step) if seconds else ""


def labels(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Runs by their names; by their paths where two have the same name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}


def differing(runs: Mapping[str, RunRecord]) -> list[str]:
    """Settings whose values are not the same in all runs."""
    names = dict.fromkeys(name for run in runs.values() for name in run.settings)
    return [name for name in names if any(spell(run, name) != spell(next(iter(runs.values())), name) for run in runs.values())]


def spell(run: RunRecord, setting: str) -> str:
    """A setting's value as a user writes it; a dash where the run has no such setting."""
    if setting not in run.settings:
        return NONE
    value = run.settings[setting]
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(empty)"
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def cards(runs: Mapping[str, RunRecord]) -> list[Card]:
    """The pictures of each run's last look, each once."""
    asked = {(sample.image, sample.question): sample for run in runs.values() for looks in list(run.looks.values())[-1:] for sample in looks}
    made = []
    for (image, question), sample in asked.items():
        picture, pixelated = thumbnail(image) if image else ("", False)
        missing = "" if picture else f"The picture {image} is not there, or cannot be read." if image else "A question without a picture."
        answers = [answer for label, run in runs.items() for answer in _answers(label, run, image, question)]
        made.append(Card(picture, pixelated, missing, without_placeholder(question), sample.reference, answers))
    return made


def without_placeholder(question: str) -> str:
    """The words alone where one picture is asked about; of several, the places stay."""
    return question.replace("<image>", "").strip() if question.count("<image>") == 1 else question


def _answers(label: str, run: RunRecord, image: Path | None, question: str) -> list[Answer]:
    said = [(step, s) for step, samples in run.looks.items() for s in samples if (s.image, s.question) == (image, question)]
    if not said:
        return []
    (_, latest), earlier = said[-1], said[:-1]
    return [Answer(label, latest.generated, exact_match(latest.generated, latest.reference), [(step, sample.generated) for step, sample in earlier])]


def thumbnail(path: Path) -> tuple[str, bool]:
    """A picture as a data URL, small, and whether its pixels should be seen; empty if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return "", False
    return small_picture(picture, SIDE)


def small_picture(picture: "Image.Image", side: int) -> tuple[str, bool]:
    """A picture as a data URL, its long side at most so many pixels, and whether its pixels should be seen."""
    small = max(picture.size) <= SMALL
    picture = picture.copy()
    picture.thumbnail((side, side))
    out, kind = io.BytesIO(), "png" if small else "jpeg"
    picture.save(out, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small


def write_run_report(runs: Sequence[RunRecord], out: Path) -> None:
    """Write the page about runs.

    Args:
        runs: One or several.
        out: The HTML file; its folder is made if it is missing.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        ConfigError: If the file cannot be written.
    """
    named = labels(runs)
    text = filled(Path(__file__).with_name("run_report.html.j2"), page(named))
    write_whole(out, text, remedy="Name another file with --out.")


def page(runs: Mapping[str, RunRecord]) -> dict[str, Any]:
    """What the template shows."""
    came_to = {label: numbers(run) for label, run in runs.items()}
    drawn = draw_panels(runs)
    different = differing(runs)
    settings = list(dict.fromkeys(name for run in runs.values() for name in run.settings))
    return {
        "title": " · ".join(runs) if len(runs) < 3 else f"{len(runs)} runs",
        "runs": {label: str(run.folder) for label, run in runs.items()},
        "parts": [_parts(run) for run in runs.values()],
        "numbers": [
            [name, *(came_to[label].get(name, NONE) for label in runs)] for name in dict.fromkeys(name for row in came_to.values() for name in row)
        ],
        "different": [[_flag(name), *(spell(run, name) for run in runs.values())] for name in different],
        "settings": [[_flag(name), *(spell(run, name) for run in runs.values())] for name in settings if name not in different],
        "curves": [panel for panel in drawn if panel.svg],
        "undrawn": [panel.title[0].lower() + panel.title[1:] for panel in drawn if not panel.svg],
        "cards": cards(runs),
        "looks": {label: list(run.looks)[-1] for label, run in runs.items() if run.looks},
        "gaps": [f"{label}: {gap}" if len(runs) > 1 else gap for label, run in runs.items() for gap in run.gaps],
    }


def _parts(run: RunRecord) -> str:
    """The composition and its data in one line."""
    said = [spell(run, f"model.{part}") for part in ("vision", "connector", "language")]
    return f"{' + '.join(said)}, {spell(run, 'stage.name')} on {spell(run, 'stage.dataset')}"
