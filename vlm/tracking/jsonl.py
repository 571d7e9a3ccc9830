"""Metrics as JSON lines, which outlive a killed run, and are cut where a resumed one begins."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError
from vlm.tracking.base import Shown


class JSONL:
    """One JSON object a line, in `metrics.jsonl` of the run folder."""

    def __init__(self, path: Path, *, after_step: int | None = None):
        """Append to a file; it is created if it is missing.

        Args:
            path: The file.
            after_step: Lines of later steps are taken away first, as is a last line that was cut: a resumed run takes those steps again.
        """
        if after_step is not None and path.exists():
            _cut(path, after_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and flush a line, so that a killed run keeps what it measured."""
        self._write({"step": step, **metrics})

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Write the texts; the pictures by their paths."""
        self._write({"step": step, "samples": [vars(sample) | {"image": str(sample.image or "")} for sample in samples]})

    def _write(self, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"{self._file.name} cannot be written: {error.strerror}. Free space, or choose another --run-root.") from error

    def finish(self) -> None:
        """Close the file; that the disk is full was said when a line could not be written."""
        with suppress(OSError):
            self._file.close()


def _cut(path: Path, last_step: int) -> None:
    """Keep the lines up to a step; the file is replaced in one go."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):
            whole = False
        kept += [line] if whole else []
    shorter = path.with_name(path.name + ".tmp")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(path)
