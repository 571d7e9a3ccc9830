"""`vlm report RUN [RUN ...]`: one HTML page about a run, or about several compared: curves, samples, throughput, settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vlm.conf.cli import Positional, parse
from vlm.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """What to report."""

    runs: Annotated[tuple[str, ...], Positional]
    """Run folders, or unique prefixes of runs' names."""
    out: Path | None = None
    """The HTML file; None: report.html in the run folder; comparison.html in the first, if there are several."""
    run_root: Path = Path("runs")
    """Folder of the run folders, where a prefix is looked up."""


def main(argv: Sequence[str]) -> None:
    """Write the page and print where it is."""
    arguments = parse(Arguments, argv, prog="vlm report", description=__doc__.split(": ", 1)[1])
    if not arguments.runs:
        raise ConfigError("Say which run: `vlm report RUN [RUN ...]`, with run folders or prefixes of runs' names.")
    from vlm.evaluate.run_record import find_run, read_run
    from vlm.evaluate.run_report import write_run_report

    folders = list(dict.fromkeys(find_run(run, run_root=arguments.run_root) for run in arguments.runs))
    default = folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    out = arguments.out or default
    write_run_report([read_run(folder) for folder in folders], out)
    print(out)
