"""Curves of one or several runs as SVG that takes the colors of the page it stands in. Knows which metrics belong into one picture, not how they came about."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm.errors import MissingPackageError
from vlm.evaluate.run_record import RunRecord

COLORS = ("#3b82c4", "#e07b39", "#3fa06f", "#c2528b", "#8b6fd0", "#a88a2c", "#3aa5b0", "#c9504c")  # read on white and on dark gray
INK, FAINT = "#010203", "#8a94a3"  # INK becomes the page's color of text
MOST_POINTS = 600  # drawn of a curve; means of neighbors beyond
SMOOTH_FROM = 50  # points; below, every step is seen as it is
SIZE = (5.0, 2.7)  # inches
SHARE = "share, 0 to 1"  # unit of what is drawn on an axis of its whole range
MEMORY = {"system/rss_gb": "process", "system/gpu_gb": "GPU", "system/gpu_peak_gb": "GPU, most"}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: What it shows.
        unit: Label of the vertical axis.
        keys: Takes the name of a metric, says whether it belongs here.
        label: What the legend calls a metric.
        scale: The values are multiplied by it.
        log: True for a logarithmic axis.
        points: True for few values, each of which is marked.
        smooth: True for values that jump from step to step.
        apart: True if several runs get a picture for each metric.
    """

    title: str
    unit: str
    keys: Callable[[str], bool]
    label: Callable[[str], str] = field(default=lambda key: key)
    scale: float = 1.0
    log: bool = False
    points: bool = False
    smooth: bool = True
    apart: bool = False


def _is(*names: str) -> Callable[[str], bool]:
    return lambda key: key in names


def _tail(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _share(key: str) -> str:
    return key.removesuffix("_share").replace("_", " ")


PANELS = (
    Panel("Training loss", "nats a labelled token", _is("loss")),
    Panel("Validation loss", "nats a labelled token", _is("validation_loss"), points=True),
    Panel("Validation answers", "share", lambda key: key.startswith("validation/"), lambda key: _tail(key).replace("_", " "), points=True, apart=True),
    Panel("Loss by source", "nats a labelled token", lambda key: key.startswith("loss/"), lambda key: key.removeprefix("loss/"), apart=True),
    Panel("Gradient norm", "norm before clipping", _is("grad_norm"), log=True),
    Panel("Learning rate", "rate", lambda key: key.startswith("lr/"), _tail, smooth=False, apart=True),
    Panel("Tokens", "tokens a second", _is("tokens_per_second")),
    Panel("Pictures", "pictures a second", _is("images_per_second")),
    Panel("Model FLOPs utilization", "% of the device's peak", _is("mfu"), scale=100.0),
    Panel("Where the rest goes", "% of time, slots or FLOPs", lambda key: key.endswith("_share"), _share, scale=100.0, apart=True),
    Panel("Memory", "GB", lambda key: key.startswith("system/") and key.endswith("_gb"), lambda key: MEMORY.get(key, key), smooth=False, apart=True),
    Panel("Load", "% (100: one core, one GPU)", _is("system/cpu_percent", "system/gpu_percent"), lambda key: _tail(key).removesuffix("_percent"), apart=True),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A picture, or why there is none: `svg` is empty then."""

    title: str
    svg: str


def draw_panels(runs: Mapping[str, RunRecord]) -> list[Drawn]:
    """Every panel that any run has values for.

    Args:
        runs: Runs by the label that the legend gives them.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    keys = list(dict.fromkeys(key for run in runs.values() for key in run.keys))
    drawn = []
    for panel in PANELS:
        own = [key for key in keys if panel.keys(key)]
        if not own:
            drawn.append(Drawn(panel.title, ""))
        elif panel.apart and len(runs) > 1:
            drawn += [Drawn(f"{panel.title}: {panel.label(key)}", _draw(panel, runs, [key])) for key in own]
        else:
            drawn.append(Drawn(panel.title, _draw(panel, runs, own)))
    return drawn


def _draw(panel: Panel, runs: Mapping[str, RunRecord], keys: Sequence[str]) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", needed_for="The report", extra="report") from None
    style = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT}
    labels = {"xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": FAINT, "svg.fonttype": "none", "svg.hashsalt": "vlm"}
    with rc_context({**style, **labels}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        curves = [(label, key, run.series(key)) for label, run in runs.items() for key in keys if run.series(key)]
        for i, (label, key, points) in enumerate(curves):
            color = list(runs).index(label) if len(runs) > 1 else i
            _curve(axis, panel, points, color=COLORS[color % len(COLORS)], label=label if len(runs) > 1 else panel.label(key))
        _finish(axis, panel, curves, legend=len(curves) > 1 or len(runs) > 1)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _curve(axis: Any, panel: Panel, points: Sequence[tuple[int, float]], *, color: str, label: str) -> None:
    steps, values = thin([float(step) for step, _ in points]), thin([value * panel.scale for _, value in points])
    if panel.smooth and not panel.points and len(points) >= SMOOTH_FROM:
        axis.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
        axis.plot(steps, smooth(values), color=color, linewidth=1.6, label=label)
    else:
        axis.plot(steps, values, color=color, linewidth=1.6, label=label, marker="o" if panel.points or len(points) == 1 else None, markersize=4)


def _finish(axis: Any, panel: Panel, curves: Sequence[tuple[str, str, Sequence[tuple[int, float]]]], *, legend: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = [value * panel.scale for _, _, points in curves for _, value in points]
    axis.set(xlabel="optimizer step", ylabel=panel.unit)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if panel.log and min(values) > 0 and max(values) > 3 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if max(values) < 30 * min(values) and _leads(value) else ""))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif panel.unit == SHARE:
        axis.set_ylim(-0.03, 1.03)
    elif min(values) >= 0 and not panel.points:
        axis.set_ylim(0, 1.08 * max(values) or 1.0)
    if axis.get_yscale() != "log" and max(values) >= 1000:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if axis.get_yscale() != "log" and 0 < max(values) < 1e-2:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    if legend:
        axis.legend(fontsize=8, frameon=False, ncols=2 if len(curves) > 3 else 1)


def _leads(value: float) -> bool:
    """True for 1, 2 and 5 times a power of ten."""
    return round(value / 10 ** math.floor(math.log10(value))) in (1, 2, 5)


def thin(values: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """Means of equally many neighbors, so that at most so many values are left."""
    group = -(-len(values) // most)
    return [math.fsum(values[i : i + group]) / len(values[i : i + group]) for i in range(0, len(values), group or 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """A centered mean over about a twentieth of the curve; narrower, and still centered, at its ends."""
    reach = max(1, len(values) // 40)
    return [_mean(values[max(0, i - near) : i + near + 1]) for i in range(len(values)) for near in [min(reach, i, len(values) - 1 - i)]]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
