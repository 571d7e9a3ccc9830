"""`vlm pretrain PRESET [overrides]`, the same as `torchrun scripts/pretrain.py`: one stage of training, from a config to a run folder."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.conf.cli import parse_train
from vlm.conf.contrastive import ContrastiveConfig
from vlm.conf.schema import RunConfig, TrainConfig

if TYPE_CHECKING:
    from vlm.types import World

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Train; the run folder is printed last."""
    config = parse_train(argv, prog="vlm pretrain")
    run_dir = run(config)
    if run_dir is not None:
        talks = isinstance(config, TrainConfig)
        print(run_dir)
        print(
            f'Talk to it: vlm chat {run_dir} --image PICTURE "What is this?"'
            if talks
            else f"Measure it: vlm evaluate retrieval {config.stage.validation or 'DATASET'} --model {run_dir}"
        )


def run(config: RunConfig) -> Path | None:
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
    from vlm.training.stage import run_stage

    world = launch(config.device)
    run_dir = run_stage(objective_of(config, world), world)
    return run_dir if world.is_main else None


def objective_of(config: RunConfig, world: "World") -> Any:
    """What a config trains, with what it needs from the rooms beside training."""
    if isinstance(config, ContrastiveConfig):
        from vlm.evaluate.overlap import compare
        from vlm.evaluate.retrieval import retrieval_metrics
        from vlm.training.contrastive import Contrastive, Measures

        return Contrastive(config, Measures(retrieval=retrieval_metrics, overlap=compare), world)
    from vlm.evaluate.answer_match import answer_metrics
    from vlm.evaluate.validation import look, validation_loss
    from vlm.training.generative import Generative, Validation

    assert isinstance(config, TrainConfig)
    return Generative(config, Validation(loss=validation_loss, look=look, score=answer_metrics))


def _print_dry_run(config: RunConfig) -> None:
    """Print the estimate, on the first of several processes."""
    if int(os.environ.get("RANK", "0")):
        return
    if isinstance(config, ContrastiveConfig):
        from vlm.training import contrastive_dry_run

        print("\n".join(contrastive_dry_run.describe(contrastive_dry_run.dry_run(config))))
        return
    from vlm.training.dry_run import describe, dry_run

    assert isinstance(config, TrainConfig)
    print("\n".join(describe(dry_run(config))))
