"""`vlm merge RUN OUT`: fold the adapters of a trained model into its towers, and store it as a checkpoint that needs none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vlm.conf.cli import Positional, parse
from vlm.conf.sources import sources_of


@dataclass(frozen=True)
class Arguments:
    """What to merge, and where to."""

    run: Annotated[str, Positional]
    """Run folder, checkpoint folder, or a unique prefix of a run's name."""
    out: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which the merged towers are stored: fp32 keeps the logits, bf16 takes half the space."""
    run_root: Path = Path("runs")
    """Folder of the run folders."""
    vision_source: str = ""
    """Folder or hub id of the vision backbone, if it is no longer where the run found it."""
    language_source: str = ""
    """Folder or hub id of the language model, if it is no longer where the run found it."""


def main(argv: Sequence[str]) -> None:
    """Merge, and print the measured difference and the line to chat."""
    arguments = parse(Arguments, argv, prog="vlm merge", description="Fold the adapters of a trained model into its towers.")
    from vlm.models.checkpoint import find_checkpoint
    from vlm.models.merge import merge

    folder = find_checkpoint(arguments.run, run_root=arguments.run_root)
    done = merge(folder, arguments.out, dtype=arguments.dtype, sources=sources_of(arguments))
    print(f"merged {' and '.join(done.towers)}; largest difference of a logit {done.difference:.2g}, of {done.largest:.2g} at most")
    if done.rounding:
        print(f"stored in {arguments.dtype}, whose rounding changes a logit by up to {done.rounding:.2g}")
    print(f'{arguments.out}\nTalk to it: vlm chat {arguments.out} --image PICTURE "What is this?"')
