"""One HTML page about a run, pictures and curves inside the file, to be opened without a server. Knows numbers and pictures, not how they came about."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import MissingPackageError
from vlm.evaluate.vqa import Answered
from vlm.pages import TerminalTable


@dataclass(frozen=True)
class Table:
    """A table with a caption: numbers are formatted by the caller."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def for_terminal(self) -> Any:
        """The table as rich prints it."""
        return TerminalTable(self.columns, self.rows, self.caption)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` that hold a training loss."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [values for values in map(json.loads, lines) if "loss" in values]


def curves_svg(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss curves side by side, one axis a run, as an SVG element.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", needed_for="The report", extra="demo") from None
    figure = Figure(figsize=(4.6 * len(runs), 2.8), layout="constrained")
    for i, (title, metrics) in enumerate(runs.items()):
        axis = figure.add_subplot(1, len(runs), i + 1)
        axis.plot([m["step"] for m in metrics], [m["loss"] for m in metrics], color="#2a6fbb", linewidth=1.4)
        axis.set(title=title, xlabel="optimizer step", ylabel="loss (nats a labelled token)", ylim=(0, None))
        axis.grid(alpha=0.25)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    return out.getvalue()[out.getvalue().index("<svg") :]


def data_url(path: Path) -> str:
    """A picture file as a data URL."""
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower(), path.suffix.lower().lstrip("."))
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    tables: Sequence[Table],
    curves: str,
    answered: Sequence[Answered],
    retrieval: Any,
    chat_line: str,
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        title: Heading.
        summary: One paragraph under it.
        tables: Results.
        curves: What `curves_svg` gave.
        answered: Questions to show with their pictures.
        retrieval: A `HeldOutRetrieval`: its table, and names with the pictures that they find.
        chat_line: The command that goes on from here.
    """
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    cards = [
        {
            "picture": data_url(item.sample.images[0]),
            "question": _words(item.question),
            "answer": item.answer,
            "truth": item.truth,
            "right": item.right,
        }
        for item in answered
    ]
    page = jinja2.Environment(autoescape=True).from_string(template)
    text = page.render(title=title, summary=summary, tables=tables, curves=curves, cards=cards, retrieval=retrieval, chat_line=chat_line)
    building = path.with_name(path.name + ".tmp")
    building.write_text(text, encoding="utf-8")
    building.rename(path)


def _words(question: str) -> str:
    return question.replace("<image>", "").strip()
