"""`vlm pretrain PRESET [overrides]`, the same as `torchrun scripts/pretrain.py`: one stage of training, from a config to a run folder."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vlm.conf.cli import parse_train
from vlm.conf.schema import TrainConfig

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Train; the run folder is printed last."""
    run_dir = run(parse_train(argv, prog="vlm pretrain"))
    if run_dir is not None:
        print(f'{run_dir}\nTalk to it: vlm chat {run_dir} --image PICTURE "What is this?"')


def run(config: TrainConfig) -> Path | None:
    """Run one stage of training; also `vlm.train(config)`.

    Returns:
        The run folder, on the main process; None on the others, and after a dry run, which prints what the run would need.

    Raises:
        VLMError: If names, data, weights or settings do not fit; everything that can be is checked before weights are loaded.
    """
    if config.dry_run:
        _print_dry_run(config)
        return None
    from vlm.distributed.launch import launch
    from vlm.evaluate.answer_match import answer_metrics
    from vlm.evaluate.validation import look, validation_loss
    from vlm.training.generative import Generative, Validation
    from vlm.training.stage import run_stage

    world = launch(config.device)
    run_dir = run_stage(Generative(config, Validation(loss=validation_loss, look=look, score=answer_metrics)), world)
    return run_dir if world.is_main else None


def _print_dry_run(config: TrainConfig) -> None:
    """Print the estimate, on the first of several processes."""
    if int(os.environ.get("RANK", "0")) == 0:
        from vlm.training.dry_run import describe, dry_run

        print("\n".join(describe(dry_run(config))))
