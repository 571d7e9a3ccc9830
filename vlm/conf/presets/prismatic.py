"""The 49 runs of Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865), by its names too: one-stage+7b is one-stage-7b.

Each is a row: what differs from the one-stage run. Source: TRI-ML/prismatic-vlms, prismatic/conf/models.py, in its order; a plus separates the words
of a run folder's name here. Only runs with an align stage in the original have an `/align` preset; elsewhere `/finetune` begins with a random
connector (`no-align+...` there). Where the original says "run with `--dataset.type ...`" or "`--stage full-finetune`", the row says so itself.

Differences that stay: padding takes one color for all towers of a fused backbone, and rows of text alone may be as long as text and picture together.
"""

from dataclasses import dataclass, replace
from typing import Literal

from vlm.conf.recipes import PRISMATIC_ALIGN, PRISMATIC_FINETUNE, prismatic_recipe
from vlm.conf.schema import LearningRates, StageConfig, TrainConfig, VisionLanguageConfig

MAX_TEXT = 2048  # llm_max_length: tokens beside those of the picture
CONTEXT = {"phi-2": 2048}  # where text and picture together may be longer than what the model reads; Prismatic checks nothing

# Tokens a picture and connector of each vision backbone: `gelu-mlp`, and `fused-gelu-mlp` for two towers.
TOWERS = {
    "clip-l14-224": (256, "mlp2x-gelu"),
    "clip-l14-336": (576, "mlp2x-gelu"),
    "in1k-vit-l16-224-augreg": (196, "mlp2x-gelu"),
    "dinov2-l14-reg-224": (256, "mlp2x-gelu"),
    "siglip-so400m-224": (256, "mlp2x-gelu"),
    "siglip-so400m-384": (729, "mlp2x-gelu"),
    "dinoclip-336-gelu": (576, "fused-mlp"),  # Prismatic runs CLIP with its own activation alone, but with plain GELU beside DINOv2
    "dinosiglip-224": (256, "fused-mlp"),
    "dinosiglip-384": (729, "fused-mlp"),
}

# Prompts that differ from the language model's own.
TEMPLATES = {
    "llama-2-7b-chat": "prismatic-llama-2-chat",
    "llama-2-13b-chat": "prismatic-llama-2-chat",
    "mistral-instruct-v0.1-7b": "prismatic-mistral-instruct",
    "phi-2": "prismatic-phi-2",
}


@dataclass(frozen=True)
class Run:
    """One run; the defaults are those of `one-stage+7b`."""

    vision: str = "clip-l14-336"
    language: str = "vicuna-1.5-7b"
    resize: Literal["squash", "crop", "pad"] = "pad"  # resize-naive, resize-crop, letterbox
    align: bool = False
    train_vision: bool = False
    dataset: str = "llava-v1.5-instruct"
    epochs: float = 1.0
    max_steps: int | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages, in their order."""
        return ("align", "finetune") if self.align else ("finetune",)


VICUNA_13B, LLAMA_7B, LLAMA_13B = "vicuna-1.5-13b", "llama-2-7b", "llama-2-13b"
SIGLIP, DINOCLIP, DINOSIGLIP = "siglip-so400m-384", "dinoclip-336-gelu", "dinosiglip-384"
ALL_DATA = "llava-lvis4v-lrv"

RUNS = {
    # LLaVA 1.5 again
    "reproduction-llava-v15+7b": Run(align=True),
    "reproduction-llava-v15+13b": Run(language=VICUNA_13B, align=True),
    # Section 4.1: optimization
    "one-stage+7b": Run(),
    "one-stage+13b": Run(language=VICUNA_13B),
    "full-ft-multi-stage+7b": Run(align=True, train_vision=True),
    "full-ft-one-stage+7b": Run(train_vision=True),
    # Section 4.2: vision backbones and what becomes of a picture
    "in1k-224px+7b": Run(vision="in1k-vit-l16-224-augreg"),
    "dinov2-224px+7b": Run(vision="dinov2-l14-reg-224"),
    "clip-224px+7b": Run(vision="clip-l14-224"),
    "siglip-224px+7b": Run(vision="siglip-so400m-224"),
    "clip-336px-resize-crop+7b": Run(resize="crop"),
    "clip-336px-resize-naive+7b": Run(resize="squash"),
    "siglip-384px-letterbox+7b": Run(vision=SIGLIP),
    "siglip-384px-resize-crop+7b": Run(vision=SIGLIP, resize="crop"),
    "siglip-384px-resize-naive+7b": Run(vision=SIGLIP, resize="squash"),
    "dinoclip-336px-letterbox+7b": Run(vision=DINOCLIP),
    "dinoclip-336px-resize-naive+7b": Run(vision=DINOCLIP, resize="squash"),
    "dinosiglip-384px-letterbox+7b": Run(vision=DINOSIGLIP),
    "dinosiglip-384px-resize-naive+7b": Run(vision=DINOSIGLIP, resize="squash"),
    # Section 4.3: language models
    "llama2+7b": Run(language=LLAMA_7B),
    "llama2+13b": Run(language=LLAMA_13B),
    "llama2-chat+7b": Run(language="llama-2-7b-chat"),
    "llama2-chat+13b": Run(language="llama-2-13b-chat"),
    "mistral-v0.1+7b": Run(language="mistral-v0.1-7b"),
    "mistral-instruct-v0.1+7b": Run(language="mistral-instruct-v0.1-7b"),
    "phi-2+3b": Run(language="phi-2"),
    "vicuna-no-cotraining+7b": Run(dataset="llava-multimodal"),
    "llama2-no-cotraining+7b": Run(language=LLAMA_7B, dataset="llava-multimodal"),
    # Section 4.4: time and data
    "train-1.25-epochs+7b": Run(max_steps=6500),
    "train-1.5-epochs+7b": Run(max_steps=7800),
    "train-2-epochs+7b": Run(epochs=2.0),
    "train-3-epochs+7b": Run(epochs=3.0),
    "llava-lvis4v+7b": Run(dataset="llava-lvis4v"),
    "llava-lrv+7b": Run(dataset="llava-lrv"),
    "llava-lvis4v-lrv+7b": Run(dataset=ALL_DATA),
    # Section 5: Prisms
    "prism-clip-controlled+7b": Run(language=LLAMA_7B, resize="squash"),
    "prism-clip-controlled+13b": Run(language=LLAMA_13B, resize="squash"),
    "prism-clip+7b": Run(language=LLAMA_7B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    "prism-clip+13b": Run(language=LLAMA_13B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    "prism-siglip-controlled+7b": Run(SIGLIP, LLAMA_7B, resize="squash"),
    "prism-siglip-controlled+13b": Run(SIGLIP, LLAMA_13B, resize="squash"),
    "prism-siglip+7b": Run(SIGLIP, LLAMA_7B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    # The original says `clip-vit-l-336px` here, against the run's name and the paper's table.
    "prism-siglip+13b": Run(SIGLIP, LLAMA_13B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    "prism-dinosiglip-controlled+7b": Run(DINOSIGLIP, LLAMA_7B, resize="squash"),
    "prism-dinosiglip-controlled+13b": Run(DINOSIGLIP, LLAMA_13B, resize="squash"),
    "prism-dinosiglip+7b": Run(DINOSIGLIP, LLAMA_7B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    "prism-dinosiglip+13b": Run(DINOSIGLIP, LLAMA_13B, resize="squash", dataset=ALL_DATA, epochs=2.0),
    "prism-dinosiglip-224px-controlled+7b": Run("dinosiglip-224", LLAMA_7B, resize="squash"),
    "prism-dinosiglip-224px+7b": Run("dinosiglip-224", LLAMA_7B, resize="squash", dataset=ALL_DATA, epochs=2.0),
}


def _presets(name: str, run: Run) -> dict[str, TrainConfig]:
    num_patches, connector = TOWERS[run.vision]
    longest = min(MAX_TEXT + num_patches, CONTEXT.get(run.language, MAX_TEXT + num_patches))
    model = VisionLanguageConfig(
        name=_own_name(name),
        vision=run.vision,
        connector=connector,
        language=run.language,
        resize=run.resize,
        template=TEMPLATES.get(run.language, ""),
    )
    return prismatic_recipe(model, align=replace(PRISMATIC_ALIGN, max_length=longest) if run.align else None, finetune=_finetune(run, longest))


def _finetune(run: Run, max_length: int) -> StageConfig:
    rate = PRISMATIC_FINETUNE.lr.connector
    lr = LearningRates(vision=rate if run.train_vision else None, connector=rate, language=rate)
    return replace(PRISMATIC_FINETUNE, dataset=run.dataset, lr=lr, epochs=run.epochs, max_steps=run.max_steps, max_length=max_length)


def _own_name(name: str) -> str:
    return name.replace("+", "-")


SPECS = {preset: config for name, run in RUNS.items() for preset, config in _presets(name, run).items()}
ALIASES = {f"{name}/{stage}": f"{_own_name(name)}/{stage}" for name, run in RUNS.items() for stage in run.stages}
