"""The demo: parts and data that pip packages ship, small enough for two CPU cores. Settings were chosen by measurement (benchmarks/demo.md)."""

from dataclasses import replace

from vlm.conf.schema import LearningRates, LoRAConfig, LoRATowers, StageConfig, TrackingConfig, TrainConfig, VisionLanguageConfig

MODEL = VisionLanguageConfig(
    name="demo",
    vision="efficientnet-lite0-64",
    connector="linear",
    language="smollm2-135m-instruct-q4",
    connector_init="ridge",
    template="chatml",  # SmolLM2's own, without its system turn: a third fewer tokens a caption
)
TRACKING = TrackingConfig(num_samples=8)

SPECS = {
    "demo/align": TrainConfig(
        model=MODEL,
        stage=StageConfig(
            name="align",
            dataset="easy-vqa-captions",
            validation="easy-vqa-captions@test",
            lr=LearningRates(connector=2e-3),
            global_batch_size=12,  # many small steps: 80 of 12 rank .91 of the captions right, 40 of 24 only .68
            per_device_batch_size=12,
            max_steps=80,
            num_workers=0,
        ),
        tracking=TRACKING,
    ),
    "demo/finetune": TrainConfig(
        model=replace(MODEL, lora=LoRATowers(language=LoRAConfig(rank=16, alpha=32.0))),
        stage=StageConfig(
            name="finetune",
            dataset="easy-vqa-single",
            share_images=True,  # the questions about a picture stand in one row, and none sees another
            validation="easy-vqa-questions@test",
            lr=LearningRates(connector=1e-3, language=1e-3),
            global_batch_size=3,
            per_device_batch_size=3,
            max_steps=120,
            warmup_ratio=0.1,
            schedule="wsd",
            decay_ratio=0.7,
            final_lr_ratio=0.05,
            num_workers=0,
        ),
        tracking=TRACKING,
    ),
}
