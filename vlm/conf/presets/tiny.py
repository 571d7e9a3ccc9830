"""Random parts of a few thousand weights: for tests, and for trying the commands in seconds without a download. Nothing sensible comes out.

The data is `easy-vqa` (`vlm preprocess --dataset-id easy-vqa`); name any other with --stage.dataset.
"""

from dataclasses import replace

from vlm.conf.schema import LearningRates, LoRAConfig, LoRATowers, StageConfig, TrainConfig, VisionLanguageConfig

MODEL = VisionLanguageConfig(name="tiny", vision="tiny-siglip", connector="mlp2x-gelu", language="tiny-llama")
ALIGN = StageConfig(
    name="align",
    dataset="easy-vqa",
    lr=LearningRates(connector=1e-2),
    global_batch_size=8,
    per_device_batch_size=4,
    max_steps=4,
    num_workers=0,
)

SPECS = {
    "tiny/align": TrainConfig(model=MODEL, stage=ALIGN, precision="fp32"),
    "tiny/finetune": TrainConfig(
        model=replace(MODEL, lora=LoRATowers(language=LoRAConfig(rank=4, alpha=8.0))),
        stage=replace(ALIGN, name="finetune", lr=LearningRates(connector=1e-3, language=1e-2)),
        precision="fp32",
    ),
}
