"""Settings that were changed but have no effect beside the others, each as a sentence. Refuses nothing: that is what the schema does."""

from vlm.conf.schema import LoRAConfig, StageConfig, TrackingConfig, TrainConfig


def idle_settings(config: TrainConfig) -> list[str]:
    """A sentence for each setting that differs from its default and changes nothing in this run."""
    return [*_stage(config.stage), *_tracking(config), *_parts(config)]


def _stage(stage: StageConfig) -> list[str]:
    said = []
    if stage.schedule != "wsd" and stage.decay_ratio != StageConfig.decay_ratio:
        said.append(f"--stage.decay-ratio has no effect with --stage.schedule {stage.schedule}: it belongs to wsd.")
    if stage.schedule == "constant" and stage.final_lr_ratio != StageConfig.final_lr_ratio:
        said.append("--stage.final-lr-ratio has no effect with --stage.schedule constant.")
    if stage.group_by_length and stage.pack_length is not None:
        said.append("--stage.group-by-length has no effect with --stage.pack-length, which fills every row.")
    if stage.mixture_by == "tokens" and ":" not in stage.dataset:
        said.append("--stage.mixture-by tokens has no effect: --stage.dataset states no shares.")
    if stage.max_steps is not None and stage.epochs != StageConfig.epochs:
        said.append(f"--stage.epochs has no effect: --stage.max-steps {stage.max_steps} says how long the stage is.")
    return said


def _tracking(config: TrainConfig) -> list[str]:
    tracking, said = config.tracking, []
    if "wandb" not in tracking.trackers and (tracking.wandb_project, tracking.wandb_entity) != (TrackingConfig.wandb_project, None):
        said.append("--tracking.wandb-project and --tracking.wandb-entity have no effect without --tracking.trackers wandb.")
    if not config.stage.validation and tracking.sample_every is not None:
        said.append("--tracking.sample-every has no effect without --stage.validation.")
    if not config.stage.validation and tracking.generation_metrics:
        said.append("--tracking.generation-metrics has no effect without --stage.validation.")
    return said


def _parts(config: TrainConfig) -> list[str]:
    model, lora, said = config.model, config.model.lora.language, []
    if lora.rank == 0 and lora != LoRAConfig():
        said.append("The settings of --model.lora.language have no effect at rank 0: set --model.lora.language.rank.")
    if config.init_from is None and model.connector_init == "random" and config.stage.lr.connector is None:
        said.append("The connector starts at random and is not trained: set --stage.lr.connector, or --init-from an aligned run.")
    return said
