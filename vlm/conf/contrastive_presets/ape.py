"""Alignment heads on frozen text encoders, trained on COCO against CLIP's images (APE, arXiv:2210.03927; github.com/sramshetty/APD).

APD trains four linear layers on `laion2b_s34b_b79k` images for one epoch of batches of 256, and publishes neither rate nor widths. Here the vectors are
cached, so that 20 epochs of batches of 4,096 take minutes, and the text encoder of the same CLIP model is the teacher: captions alone do not buy classes
that COCO does not show. Give it texts without images with --stage.distill.texts, such as classes:names.txt. Karpathy's split: no validation image is trained on.
"""

from vlm.conf.contrastive import ContrastiveConfig, ContrastiveStage, DistillConfig, DualEncoderConfig, HeadConfig, HeadRates

HEAD = HeadConfig(kind="ape", normalize_input="standardize", dropout=0.1)
STAGE = ContrastiveStage(
    name="align",
    dataset="coco-captions",
    validation="coco-captions@val",
    lr=HeadRates(text_head=1e-3, scale=1e-3),
    global_batch_size=4_096,
    epochs=20.0,
    warmup_ratio=0.05,
    weight_decay=1e-4,
    distill=DistillConfig(teacher="native"),
)


def ape(name: str, text: str, head: HeadConfig = HEAD) -> ContrastiveConfig:
    """A run that brings a text encoder into the space of CLIP ViT-B/32 of LAION-2B."""
    return ContrastiveConfig(model=DualEncoderConfig(name=name, image="clip-b32-224-laion2b-image", text=text, text_head=head), stage=STAGE)


SPECS = {
    "ape-llama3/align": ape(
        "ape-llama3", "llm2vec-llama3-8b-supervised-text", HeadConfig(kind="ape", hidden_width=2_048, normalize_input="standardize", dropout=0.1)
    ),
    "ape-sheared/align": ape("ape-sheared", "llm2vec-sheared-llama-1.3b-supervised-text"),
    "ape-minilm/align": ape(
        "ape-minilm", "all-minilm-l6-v2-text", HeadConfig(kind="ape", hidden_width=1_536, normalize_input="standardize", dropout=0.1)
    ),
}
