"""The demo's contrastive model: EfficientNet-Lite0 and MiniLM, both out of pip packages, on emoji and their names.

Small heads on both sides meet in MiniLM's space, where the text head starts as the identity. Settings were chosen by measurement on names held out of the
training names (benchmarks/contrastive_demo.md).
"""

from dataclasses import replace

from vlm.conf.contrastive import ContrastiveConfig, ContrastiveStage, DistillConfig, DualEncoderConfig, HeadConfig, HeadRates

DISTILLED = ContrastiveConfig(
    model=DualEncoderConfig(
        name="ape-demo",
        image="efficientnet-lite0-128-image",
        text="all-minilm-l6-v2-text",
        image_head=HeadConfig(kind="ape", num_layers=2, hidden_width=768, dropout=0.3, normalize_input="standardize"),
        text_head=HeadConfig(kind="linear", start="identity"),
        joint_width=384,
    ),
    stage=ContrastiveStage(
        name="align",
        dataset="twemoji",
        validation="twemoji@test",
        lr=HeadRates(image_head=1e-3, text_head=1e-3, scale=1e-3),
        global_batch_size=256,
        epochs=20.0,
        warmup_ratio=0.05,
        weight_decay=1e-2,
        distill=DistillConfig(teacher="all-minilm-l6-v2-text"),
    ),
)

SPECS = {
    "ape-demo/align": DISTILLED,
    "ape-demo-plain/align": replace(
        DISTILLED, model=replace(DISTILLED.model, name="ape-demo-plain"), stage=replace(DISTILLED.stage, distill=DistillConfig())
    ),
}
