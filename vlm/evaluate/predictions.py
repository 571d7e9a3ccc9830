"""Predictions of one model on one benchmark, on disk: written while they are made, by several ranks, so that a killed evaluation goes on where it was.

    settings.json            what the predictions depend on; others are refused
    part-0000.jsonl          predictions so far, one file for each rank; gone when all are made
    predictions.jsonl        all of them, in the order of the questions

Knows no model and no metric.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError
from vlm.pages import write_whole

SETTINGS, PREDICTIONS = "settings.json", "predictions.jsonl"
EARLIER = "part-earlier.jsonl"
REMEDY = "Name another folder with --out."


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model said.

    Attributes:
        id: The question.
        prompt: What the model read, chat template included.
        answer: What it said; empty if it could not be asked.
        error: Why it could not be asked; empty if it was.
        log_probs: Log-probabilities of the candidates, where they were compared.
    """

    id: str
    prompt: str = ""
    answer: str = ""
    error: str = ""
    log_probs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictionFolder:
    """The predictions of one model in a folder of their own."""

    path: Path

    def begin(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Keep what an earlier evaluation with the same settings has predicted, in one file. For one process.

        Raises:
            ConfigError: If the folder holds predictions with other settings, or cannot be written.
        """
        if overwrite:
            for file in (*self._parts(), self.path / PREDICTIONS, self.path / SETTINGS):
                file.unlink(missing_ok=True)
        self._refuse_others(settings)
        write_whole(self.path / SETTINGS, json.dumps(settings, indent=1) + "\n", remedy=REMEDY)
        kept = self.made()
        self._write(EARLIER, map(_row, kept.values()))
        for file in (*self._parts(), self.path / PREDICTIONS):
            if file.name != EARLIER:
                file.unlink(missing_ok=True)

    def made(self) -> dict[str, Prediction]:
        """Predictions so far, by question; those with an error are made again, for their picture may have come back."""
        files = [*self._parts(), self.path / PREDICTIONS]
        return {made.id: made for file in files if file.is_file() for made in _read(file) if not made.error}

    @contextmanager
    def part(self, rank: int) -> Iterator[Callable[[Iterable[Prediction]], None]]:
        """A function that writes predictions of one rank, at once.

        Raises:
            ConfigError: If they cannot be written.
        """
        try:
            with (self.path / f"part-{rank:04}.jsonl").open("w", encoding="utf-8") as file:

                def write(made: Iterable[Prediction]) -> None:
                    file.write("".join(map(_row, made)))
                    file.flush()

                yield write
        except OSError as error:
            raise ConfigError(f"Predictions cannot be written to {self.path}: {error.strerror}. What was written is kept. {REMEDY}") from error

    def collect(self, ids: Sequence[str]) -> list[Prediction]:
        """The predictions of all ranks, in the order of the questions.

        Raises:
            ConfigError: If some are missing.
        """
        made = {one.id: one for file in self._parts() for one in _read(file)}
        missing = [id for id in ids if id not in made]
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(ids)} predictions are missing in {self.path}, first {missing[0]!r}. All ranks must see this folder."
            )
        return [made[id] for id in ids]

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write `predictions.jsonl`, and remove the parts."""
        path = self._write(PREDICTIONS, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for file in self._parts():
            file.unlink()
        return path

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.jsonl"))

    def _write(self, name: str, lines: Iterable[str]) -> Path:
        return write_whole(self.path / name, "".join(lines), remedy=REMEDY)

    def _refuse_others(self, settings: Mapping[str, Any]) -> None:
        file = self.path / SETTINGS
        if not file.is_file():
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        for key in (*settings, *before):
            if before.get(key) != settings.get(key):
                raise ConfigError(
                    f"{self.path} holds predictions of another evaluation: {key} was {before.get(key)!r} and is {settings.get(key)!r}. "
                    "Name another folder with --out, or replace them with --overwrite."
                )


def _row(made: Prediction) -> str:
    return json.dumps({key: value for key, value in asdict(made).items() if value or key in ("id", "answer")}, ensure_ascii=False) + "\n"


def _read(file: Path) -> Iterator[Prediction]:
    """The predictions of a file; a line that was cut off by a kill is passed over."""
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):  # not splitlines: an answer may hold U+2028
        try:
            row = json.loads(line)
            yield Prediction(**{key: row[key] for key in ("id", "prompt", "answer", "error", "log_probs") if key in row})
        except (ValueError, KeyError, TypeError):
            continue
