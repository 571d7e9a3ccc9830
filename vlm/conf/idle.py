"""Settings that were changed but have no effect beside the others, each as a sentence. Refuses nothing: that is what the schema does."""

from vlm.conf.schema import LoRAConfig, ParallelConfig, RunConfig, Schedule, StageConfig, TrackingConfig, TrainConfig


def idle_settings(config: RunConfig, *, ranks: int | None = None) -> list[str]:
    """A sentence for each setting that differs from its default and changes nothing in this run.

    Args:
        config: The run.
        ranks: Processes of the run, at least 1; None if it is not known.
    """
    said = [*_schedule(config.stage), *_checkpoints(config), *_tracking(config), *_parallel(config.parallel, ranks), *_assumed(config)]
    return [*said, *_rows(config.stage), *_parts(config)] if isinstance(config, TrainConfig) else said


def _schedule(stage: Schedule) -> list[str]:
    said = []
    if stage.schedule != "wsd" and stage.decay_ratio != Schedule.decay_ratio:
        said.append(f"--stage.decay-ratio has no effect with --stage.schedule {stage.schedule}: it belongs to wsd.")
    if stage.schedule == "constant" and stage.final_lr_ratio != Schedule.final_lr_ratio:
        said.append("--stage.final-lr-ratio has no effect with --stage.schedule constant.")
    if stage.max_steps is not None and stage.epochs != Schedule.epochs:
        said.append(f"--stage.epochs {stage.epochs:g} has no effect: --stage.max-steps {stage.max_steps} says how long the stage is.")
    return said


def _rows(stage: StageConfig) -> list[str]:
    said = []
    if stage.group_by_length and stage.pack_length is not None:
        said.append("--stage.group-by-length has no effect with --stage.pack-length, which fills every row.")
    if stage.mixture_by == "tokens" and ":" not in stage.dataset:
        said.append("--stage.mixture-by tokens has no effect: --stage.dataset states no shares.")
    if "vision" in stage.gradient_checkpointing and stage.lr.vision is None:
        said.append("--stage.gradient-checkpointing vision has no effect: the vision backbone is frozen, and keeps no activations.")
    return said


def _checkpoints(config: RunConfig) -> list[str]:
    said = []
    if config.keep_every is not None and config.keep_last is None:
        said.append("--keep-every has no effect without --keep-last: all checkpoints stay.")
    if config.keep_last is not None and config.checkpoint_every is None:
        said.append("--keep-last has no effect without --checkpoint-every: there is one checkpoint, at the end.")
    return said


def _tracking(config: RunConfig) -> list[str]:
    tracking, said = config.tracking, []
    if "wandb" not in tracking.trackers and (tracking.wandb_project, tracking.wandb_entity) != (TrackingConfig.wandb_project, None):
        said.append("--tracking.wandb-project and --tracking.wandb-entity have no effect without --tracking.trackers wandb.")
    if not config.stage.validation and tracking.sample_every is not None:
        said.append("--tracking.sample-every has no effect without --stage.validation.")
    if not config.stage.validation and tracking.generation_metrics:
        said.append("--tracking.generation-metrics has no effect without --stage.validation.")
    return said


def _assumed(config: RunConfig) -> list[str]:
    idle = config.assume != type(config.assume)() and not config.dry_run
    return ["The settings of --assume have no effect without --dry-run."] if idle else []


def _parallel(parallel: ParallelConfig, ranks: int | None) -> list[str]:
    said = []
    if ranks == 1 and parallel.strategy != ParallelConfig.strategy:
        said.append(f"--parallel.strategy {parallel.strategy} has no effect in one process: start several with torchrun.")
    if parallel.strategy != "hsdp" and parallel.shard_size is not None:
        said.append(f"--parallel.shard-size has no effect with --parallel.strategy {parallel.strategy}: it belongs to hsdp.")
    if parallel.strategy not in ("fsdp", "hsdp") and not parallel.reshard_after_forward:
        said.append(f"--parallel.no-reshard-after-forward has no effect with --parallel.strategy {parallel.strategy}: it belongs to fsdp and hsdp.")
    return said


def _parts(config: TrainConfig) -> list[str]:
    model, said = config.model, []
    for tower, lora in vars(model.lora).items():
        if lora.rank == 0 and lora != LoRAConfig():
            said.append(f"The settings of --model.lora.{tower} have no effect at rank 0: set --model.lora.{tower}.rank.")
    if config.init_from is None and model.connector_init == "random" and config.stage.lr.connector is None:
        said.append("The connector starts at random and is not trained: set --stage.lr.connector, or --init-from an aligned run.")
    return said
