"""Tiny random encoders, for tests and a first look."""

from vlm.conf.contrastive import ContrastiveConfig, ContrastiveStage, DualEncoderConfig, HeadConfig, HeadRates

SPECS = {
    "tiny-ape/align": ContrastiveConfig(
        model=DualEncoderConfig(name="tiny-ape", image="tiny-clip-image", text="tiny-clip-text", text_head=HeadConfig(kind="ape", hidden_width=64)),
        stage=ContrastiveStage(name="align", dataset="easy-vqa-captions", lr=HeadRates(), global_batch_size=16, max_steps=4),
    )
}
