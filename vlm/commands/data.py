"""`vlm data check DIR` and `vlm data show DIR`: look at data before anything trains on it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vlm.conf.cli import Positional, parse
from vlm.errors import ConfigError, DataFormatError, UnknownNameError

if TYPE_CHECKING:
    from vlm.data.preparation.check import Report

SUBCOMMANDS = {
    "check": "Verify rows and pictures, find duplicates and leftovers, measure texts.",
    "show": "See what a model gets from samples: tiles, and the text that the loss sees.",
}


@dataclass(frozen=True)
class CheckArguments:
    """What to check."""

    path: Annotated[Path, Positional]
    """Prepared dataset by name or folder, or a file or folder of your own data."""
    data_root: Path = Path("data")
    """Folder of the prepared datasets."""
    verify: Literal["decode", "header"] = "decode"
    """How pictures are verified: decode reads every pixel, header only size and format."""
    workers: int | None = None
    """Processes that verify pictures; None: one for each CPU."""
    json: Path | None = None
    """File to write the findings to, as JSON."""


def main(argv: Sequence[str]) -> int:
    """Run `check` or `show`, and return the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(["usage: vlm data COMMAND [arguments]", "", *(f"  {name:8} {what}" for name, what in SUBCOMMANDS.items())]))
        return 0
    name, *rest = argv
    if name not in SUBCOMMANDS:
        raise UnknownNameError("command of `vlm data`", name, SUBCOMMANDS)
    if name == "show":
        from vlm.commands import data_show

        return data_show.main(rest) or 0
    return _check(rest)


def _check(argv: Sequence[str]) -> int:
    """Print what was found; 1 if there are errors, 0 with warnings only."""
    arguments = parse(CheckArguments, argv, prog="vlm data check", description="Verify prepared data, or your own, before anything trains on it.")
    from vlm.commands.preprocess import show_progress
    from vlm.data.preparation.check import check

    reports = check(_located(arguments), verify=arguments.verify, workers=arguments.workers, progress=show_progress)
    if arguments.json:
        _write(reports, arguments.json)
    for report in reports:
        _print(report)
    return 0 if all(report.ok for report in reports) else 1


def _located(arguments: CheckArguments) -> Path:
    """What is at the path, or else the prepared dataset of that name or alias."""
    from vlm.data.datasets import DATASETS

    path = arguments.path
    if path.exists():
        return path
    name = str(path)
    prepared = arguments.data_root / (DATASETS.resolve(name) if name in DATASETS else name)
    if prepared.exists():
        return prepared
    prepare = f"vlm preprocess --dataset-id {name} --root-dir {shlex.quote(str(arguments.data_root))}"
    remedy = (
        f"Prepare it with: {prepare}" if name in DATASETS else "Give the path of your data, or --data-root for the folder of the prepared datasets."
    )
    raise DataFormatError(f"There is no file or folder {path}, and no {prepared}. {remedy}")


def _write(reports: Sequence["Report"], path: Path) -> None:
    try:
        path.write_text(json.dumps([asdict(report) | {"ok": report.ok} for report in reports], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {path} ({error.strerror}). Choose another file with --json.") from error


def _print(report: "Report") -> None:
    from vlm.commands.preprocess import printable

    print(report.path if report.name == Path(report.path).name else f"{report.name} in {report.path}")
    for split, numbers in report.splits.items():
        print(f"  {split}: {numbers.rows:,} conversations, {numbers.images:,} pictures")
        for what, spread in numbers.spreads.items():
            spread_line = f"{spread.min:,} to {spread.max:,}; median {spread.median:,}, mean {spread.mean:,}, 99 % up to {spread.p99:,}"
            print(f"    {what + ' a conversation':28} {spread_line}")
    for finding in report.findings:
        print(f"  {finding.level}: {finding.count:,} x {finding.kind}")
        for example in finding.examples:
            print(f"    {printable(example)}")
    numbers = {level: sum(finding.level == level for finding in report.findings) for level in ("error", "warning")}
    print(f"  {numbers['error']} kind(s) of error, {numbers['warning']} kind(s) of warning")
