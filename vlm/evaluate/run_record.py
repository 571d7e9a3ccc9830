"""What a run left in its folder: settings, metrics, answers to validation pictures. Reads what is there, and says in words what is not.

Loads no torch and needs no model: a run of another version of vlm, or one that was killed, can be read as well.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError
from vlm.tracking import Shown


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: The run folder.
        settings: Every setting by its dotted name, as stored.
        metrics: Lines of metrics.jsonl in their order, each with its `step`; finite numbers only.
        looks: Answers to validation pictures by step.
        gaps: What is missing or broken, as sentences.
    """

    folder: Path
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    looks: Mapping[int, Sequence[Shown]] = field(default_factory=dict)
    gaps: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def keys(self) -> list[str]:
        """Names of all metrics, in the order in which they first came."""
        return list(dict.fromkeys(key for line in self.metrics for key in line if key != "step"))

    def series(self, key: str) -> list[tuple[int, float]]:
        """Step and value wherever a metric was logged."""
        return [(int(line["step"]), line[key]) for line in self.metrics if key in line]

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 if none was."""
        return max((int(line["step"]) for line in self.metrics), default=0)


def find_run(name: str | Path, *, run_root: Path = Path("runs")) -> Path:
    """The run folder behind a path or a unique prefix of a run's name.

    Raises:
        ConfigError: If it is a folder of something else, or if nothing or more than one run answers to the name.
    """
    path = Path(name)
    for folder in (path, run_root / path):
        if (folder / "config.json").is_file():
            return folder
    parent = path.parent if path.parent != Path() else run_root
    runs = sorted(config.parent for config in parent.glob("*/config.json"))
    matches = [run for run in runs if run.name.startswith(path.name)]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join(run.name for run in matches or runs) or "none"
    if matches:
        raise ConfigError(f"{len(matches)} runs begin with {path.name!r} in {parent}: {shown}. Give more of the name.")
    problem = f"{path} is no run folder: it has no config.json" if path.exists() else f"There is no run {path}, and none that begins with that name"
    raise ConfigError(f"{problem}. Runs in {parent}: {shown}.")


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ConfigError: If its config.json is not that of a run.
    """
    gaps: list[str] = []
    settings = _read_settings(folder / "config.json")
    lines = list(_json_lines(folder / "metrics.jsonl", gaps))
    metrics = [numbers for line in lines if "samples" not in line and len(numbers := _finite(line)) > 1]
    looks = {int(line["step"]): _shown(line["samples"]) for line in lines if isinstance(line.get("samples"), list)}
    if not any("loss" in line for line in metrics):
        gaps.append("No step has been logged yet, so there are no curves.")
    if not any(looks.values()):
        gaps.append("No validation pictures were looked at: --stage.validation names a dataset for that.")
    return RunRecord(folder, settings, metrics, looks, [*gaps, *_incidents(folder / "incidents.jsonl")])


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Name the folder of a run.") from error
    if not isinstance(values, dict) or not {"model", "stage"} <= values.keys():
        raise ConfigError(f"{path} holds no settings of a run: it has no model and no stage. Name the folder of a run.")
    return dict(_flat(values))


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        elif path or name != "format_version":
            yield f"{path}{name}", value


def _json_lines(path: Path, gaps: list[str]) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that have a step; what is wrong with the others is added to the gaps."""
    if not path.is_file():
        gaps.append(f"There is no {path.name}: --tracking.trackers jsonl writes it.")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for i, line in enumerate(lines):
        try:
            values = json.loads(line)
            int(values["step"])
        except (ValueError, KeyError, TypeError):
            last = i + 1 == len(lines) and not line.endswith("\n")
            gaps.append(
                f"The last line of {path.name} was cut: the run ended while it was written."
                if last
                else f"Line {i + 1} of {path.name} cannot be read."
            )
            continue
        yield values


def _finite(line: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in line.items() if isinstance(value, int | float) and math.isfinite(value)}


def _shown(samples: Sequence[Any]) -> list[Shown]:
    whole = [sample for sample in samples if isinstance(sample, dict) and {"question", "reference", "generated"} <= sample.keys()]
    return [
        Shown(Path(sample["image"]) if sample.get("image") else None, str(sample["question"]), str(sample["reference"]), str(sample["generated"]))
        for sample in whole
    ]


def _incidents(path: Path) -> list[str]:
    """How many steps went wrong, if any did."""
    if not path.is_file():
        return []
    kinds = Counter(str(values.get("kind", "other")) for values in _json_lines(path, []))
    return [f"Steps that went wrong: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; see {path.name}."] if kinds else []
