"""Where the study keeps its files below one folder: swatches, prompts, similarities, metrics, plots. A model's name stands there with / and - as _."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.color.associations import Associations, read_associations
from vlm.color.colors import Colors
from vlm.color.files import csv_text, write_whole
from vlm.color.prompts import STRENGTH_STYLE, STRENGTHS, Prompts
from vlm.color.study import Answer
from vlm.errors import DataFormatError

SCORES, DETAILS, STRENGTH_SCORES = "similarity_scores_df.txt", "details.json", "strength_scores_df.txt"
METRICS = {"raw": "evaluation_metrics_df.txt", "normalized": "normalized_metrics_df.txt"}
OF_A_TEST = re.compile(r"test_(\d+)_scores")


def folder_name(model: str) -> str:
    """A model's name as its folder is called."""
    return re.sub(r"[^\w.@+]", "_", model)


@dataclass(frozen=True)
class Prediction:
    """Scores of one model and one prompt style, or a file of scores made elsewhere.

    Attributes:
        model: What the model is called; of a file made elsewhere, its name.
        style: Prompt style, 1 to 5; 0 if it is not known.
        scores: The scores.
        scale: What the model multiplies cosines with; None if it is not known.
        colors: `uw71` or the file of the colors.
    """

    model: str
    style: int
    scores: Associations
    scale: float | None = None
    colors: str | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.model}, style {self.style}" if self.style else self.model

    def folder(self, root: Path, kind: str) -> Path:
        """The folder of its metrics or eval: `<root>/<evaluation_metrics or evaluation>/<model>/test_<style>_<kind>`."""
        top = root / {"metrics": "evaluation_metrics", "eval": "evaluation"}[kind] / folder_name(self.model)
        return top / (f"test_{self.style}_{kind}" if self.style else kind)


def write_inputs(root: Path, prompts: Prompts, colors: Colors) -> list[Path]:
    """Write the swatches and the prompts.

    Returns:
        The folder of the swatches and the file of the prompts.

    Raises:
        ConfigError: If a file cannot be written.
        DataFormatError: If the swatches of two colors would have the same name.
    """
    files = [f"{folder_name(name)}.png" for name in colors.names]
    if twice := next((i for i, file in enumerate(files) if file in files[:i]), 0):
        other = colors.names[files.index(files[twice])]
        raise DataFormatError(f"The swatches of the colors {other!r} and {colors.names[twice]!r} would both be {files[twice]}; rename one of them.")
    for file, image in zip(files, colors.swatches(), strict=True):
        out = io.BytesIO()
        image.save(out, format="PNG")
        write_whole(root / "images" / file, out.getvalue())
    text = "".join(f"{line}\n" for line in prompts.lines)
    return [root / "images", write_whole(root / "text_prompts" / f"test_{prompts.style}" / "text_prompts.txt", text)]


def write_answer(root: Path, model: str, prompts: Prompts, answer: Answer, *, colors: str) -> Path:
    """Write a model's scores, and beside them what the study's file does not say.

    Args:
        root: The folder of the study.
        model: What the model is called.
        prompts: What it was asked.
        answer: What it said.
        colors: `uw71`, or the file of the colors.

    Raises:
        ConfigError: If a file cannot be written.
    """
    folder = root / "cosine_similarities" / folder_name(model) / f"test_{prompts.style}_scores"
    details = {"model": model, "style": prompts.style, "scale": answer.scale, "colors": colors}
    if prompts.style == STRENGTH_STYLE:
        rows = zip(((one, s) for one in prompts.concepts for s in STRENGTHS), answer.cosines, strict=True)
        header = ["concept", "strength", *answer.scores.colors]
        write_whole(folder / STRENGTH_SCORES, csv_text([header, *([*names, *row] for names, row in rows)]))
    write_whole(folder / DETAILS, json.dumps(details, indent=1) + "\n")
    return write_whole(folder / SCORES, answer.scores.as_csv())


def find_predictions(root: Path) -> list[Path]:
    """All files of scores below a folder of the study, by model and style.

    Raises:
        DataFormatError: If there is none.
    """
    found = sorted((root / "cosine_similarities").glob(f"*/test_*_scores/{SCORES}"))
    if not found:
        raise DataFormatError(
            f"There are no predictions in {root / 'cosine_similarities'}: make some with `vlm color run --model NAME`, or name a CSV file."
        )
    return found


def read_prediction(path: Path) -> Prediction:
    """A file of scores; in a folder of the study, with the model and style of that folder.

    Raises:
        DataFormatError: If it cannot be read.
    """
    scores = read_associations(path)
    match = OF_A_TEST.fullmatch(path.parent.name)
    if match is None:
        return Prediction(path.stem, 0, scores)
    details = _details(path.with_name(DETAILS))
    return Prediction(details.get("model", path.parent.parent.name), int(match[1]), scores, details.get("scale"), details.get("colors"))


def read_predictions(paths: Sequence[Path]) -> list[Prediction]:
    """Several files of scores.

    Raises:
        DataFormatError: If one cannot be read, or two are the same.
    """
    read = [read_prediction(path) for path in paths]
    labels = [one.label for one in read]
    if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise DataFormatError(f"Two predictions are called {twice[0]!r}; rename one of the files.")
    return read


def _details(path: Path) -> dict[str, Any]:
    """What `vlm color run` wrote beside the scores; nothing for files of the study's own code."""
    if not path.is_file():
        return {}
    try:
        details = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataFormatError(f"{path} cannot be read: {error}. Delete it if the scores beside it are not of `vlm color run`.") from error
    return details if isinstance(details, dict) else {}
