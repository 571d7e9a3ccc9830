"""Training recipes as functions from a composition to complete runs; presets are their results."""

from dataclasses import replace

from vlm.conf.schema import LearningRates, LoRAConfig, LoRATowers, StageConfig, TrainConfig, VisionLanguageConfig

LLAVA_MAX_LENGTH = 2048  # --model_max_length of scripts/v1_5; image tokens count

PRISMATIC_ALIGN = StageConfig(
    name="align",
    dataset="llava-laion-cc-sbu-558k",
    template="caption",
    lr=LearningRates(connector=1e-3),
    global_batch_size=256,
    per_device_batch_size=16,
    gradient_checkpointing=("language",),
)
PRISMATIC_FINETUNE = StageConfig(
    name="finetune",
    dataset="llava-v1.5-instruct",
    lr=LearningRates(connector=2e-5, language=2e-5),
    global_batch_size=128,
    per_device_batch_size=16,
    weight_decay=0.1,
    group_by_length=True,
    gradient_checkpointing=("language",),
)


def llava_recipe(
    model: VisionLanguageConfig,
    *,
    lora: LoRAConfig | None = None,
    align_data: str = "llava-laion-cc-sbu-558k",
    finetune_data: str = "llava-v1.5-instruct",
) -> dict[str, TrainConfig]:
    """LLaVA 1.5's two stages for any composition, `{"<name>/align": ..., "<name>/finetune": ...}`.

    Align trains the connector alone on captions, without a prompt; fine-tune trains connector and language model on conversations
    (Liu et al. 2023, arXiv:2310.03744, section 3 and appendix A; the repository's scripts/v1_5).

    Args:
        model: The composition; its `name` begins the preset names.
        lora: Adapter of the language model in the fine-tune stage, with LLaVA's LoRA rates; None trains all of its weights.
        align_data: Captions.
        finetune_data: Conversations.
    """
    align = StageConfig(
        name="align",
        dataset=align_data,
        template="plain",
        lr=LearningRates(connector=1e-3),
        global_batch_size=256,
        per_device_batch_size=32,
        max_length=LLAVA_MAX_LENGTH,
    )
    finetune = StageConfig(
        name="finetune",
        dataset=finetune_data,
        lr=LearningRates(connector=2e-5, language=2e-5 if lora is None else 2e-4),
        global_batch_size=128,
        per_device_batch_size=16,
        max_length=LLAVA_MAX_LENGTH,
        group_by_length=True,
        gradient_checkpointing=("language",),
    )
    adapted = replace(model, lora=LoRATowers(language=lora)) if lora is not None else model
    return {
        f"{model.name}/align": TrainConfig(model=model, stage=align),
        f"{model.name}/finetune": TrainConfig(model=adapted, stage=finetune),
    }


def prismatic_recipe(
    model: VisionLanguageConfig,
    *,
    lora: LoRAConfig | None = None,
    align: StageConfig | None = PRISMATIC_ALIGN,
    finetune: StageConfig = PRISMATIC_FINETUNE,
) -> dict[str, TrainConfig]:
    """Prismatic's stages for any composition, named like those of `llava_recipe`.

    Beside LLaVA 1.5's they have weight decay, the same rate for an adapter as for whole weights, and captions that end with the end token
    (Karamcheti et al. 2024, arXiv:2402.07865, section 3 and appendix A; TRI-ML/prismatic-vlms, prismatic/conf/models.py).

    Args:
        model: The composition; its `name` begins the preset names.
        lora: Adapter of the language model in the fine-tune stage; None trains all of its weights.
        align: First stage; None where the connector starts at random in the fine-tune stage, so that there is no align preset.
        finetune: Second stage.
    """
    adapted = replace(model, lora=LoRATowers(language=lora)) if lora is not None else model
    runs = {f"{model.name}/{finetune.name}": TrainConfig(model=adapted, stage=finetune)}
    return runs if align is None else {f"{model.name}/{align.name}": TrainConfig(model=model, stage=align)} | runs
