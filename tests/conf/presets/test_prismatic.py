"""The 49 runs against a table in Prismatic's own words: TRI-ML/prismatic-vlms, prismatic/conf/models.py (May 2024), read independently of ours.

One entry is not as it stands there: `prism-siglip+13b`, whose vision backbone is CLIP in the code, and SigLIP by its name and the paper.
"""

import pytest

from vlm.backbones.language import LANGUAGE
from vlm.backbones.vision import VISION
from vlm.conf.presets import PRESETS
from vlm.conf.presets.prismatic import RUNS
from vlm.conf.schema import LearningRates, LoRATowers
from vlm.connectors import CONNECTORS

# name, vision backbone, language model, connector, resizing, data, epochs or steps of the last stage, last stage
TABLE = """
reproduction-llava-v15+7b             clip-vit-l-336px         vicuna-v15-7b             gelu-mlp                 letterbox     llava-v15         1           finetune
reproduction-llava-v15+13b            clip-vit-l-336px         vicuna-v15-13b            gelu-mlp                 letterbox     llava-v15         1           finetune
one-stage+7b                          clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
one-stage+13b                         clip-vit-l-336px         vicuna-v15-13b            no-align+gelu-mlp        letterbox     llava-v15         1           finetune
full-ft-multi-stage+7b                clip-vit-l-336px         vicuna-v15-7b             gelu-mlp                 letterbox     llava-v15         1           full-finetune
full-ft-one-stage+7b                  clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           full-finetune
in1k-224px+7b                         in1k-vit-l               vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
dinov2-224px+7b                       dinov2-vit-l             vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
clip-224px+7b                         clip-vit-l               vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
siglip-224px+7b                       siglip-vit-so400m        vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
clip-336px-resize-crop+7b             clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        resize-crop   llava-v15         1           finetune
clip-336px-resize-naive+7b            clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
siglip-384px-letterbox+7b             siglip-vit-so400m-384px  vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         1           finetune
siglip-384px-resize-crop+7b           siglip-vit-so400m-384px  vicuna-v15-7b             no-align+gelu-mlp        resize-crop   llava-v15         1           finetune
siglip-384px-resize-naive+7b          siglip-vit-so400m-384px  vicuna-v15-7b             no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
dinoclip-336px-letterbox+7b           dinoclip-vit-l-336px     vicuna-v15-7b             no-align+fused-gelu-mlp  letterbox     llava-v15         1           finetune
dinoclip-336px-resize-naive+7b        dinoclip-vit-l-336px     vicuna-v15-7b             no-align+fused-gelu-mlp  resize-naive  llava-v15         1           finetune
dinosiglip-384px-letterbox+7b         dinosiglip-vit-so-384px  vicuna-v15-7b             no-align+fused-gelu-mlp  letterbox     llava-v15         1           finetune
dinosiglip-384px-resize-naive+7b      dinosiglip-vit-so-384px  vicuna-v15-7b             no-align+fused-gelu-mlp  resize-naive  llava-v15         1           finetune
llama2+7b                             clip-vit-l-336px         llama2-7b-pure            no-align+gelu-mlp        letterbox     llava-v15         1           finetune
llama2+13b                            clip-vit-l-336px         llama2-13b-pure           no-align+gelu-mlp        letterbox     llava-v15         1           finetune
llama2-chat+7b                        clip-vit-l-336px         llama2-7b-chat            no-align+gelu-mlp        letterbox     llava-v15         1           finetune
llama2-chat+13b                       clip-vit-l-336px         llama2-13b-chat           no-align+gelu-mlp        letterbox     llava-v15         1           finetune
mistral-v0.1+7b                       clip-vit-l-336px         mistral-v0.1-7b-pure      no-align+gelu-mlp        letterbox     llava-v15         1           finetune
mistral-instruct-v0.1+7b              clip-vit-l-336px         mistral-v0.1-7b-instruct  no-align+gelu-mlp        letterbox     llava-v15         1           finetune
phi-2+3b                              clip-vit-l-336px         phi-2-3b                  no-align+gelu-mlp        letterbox     llava-v15         1           finetune
vicuna-no-cotraining+7b               clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-multimodal  1           finetune
llama2-no-cotraining+7b               clip-vit-l-336px         llama2-7b-pure            no-align+gelu-mlp        letterbox     llava-multimodal  1           finetune
train-1.25-epochs+7b                  clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         6500-steps  finetune
train-1.5-epochs+7b                   clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         7800-steps  finetune
train-2-epochs+7b                     clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         2           finetune
train-3-epochs+7b                     clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-v15         3           finetune
llava-lvis4v+7b                       clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-lvis4v      1           finetune
llava-lrv+7b                          clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-lrv         1           finetune
llava-lvis4v-lrv+7b                   clip-vit-l-336px         vicuna-v15-7b             no-align+gelu-mlp        letterbox     llava-lvis4v-lrv  1           finetune
prism-clip-controlled+7b              clip-vit-l-336px         llama2-7b-pure            no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
prism-clip-controlled+13b             clip-vit-l-336px         llama2-13b-pure           no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
prism-clip+7b                         clip-vit-l-336px         llama2-7b-pure            no-align+gelu-mlp        resize-naive  llava-lvis4v-lrv  2           finetune
prism-clip+13b                        clip-vit-l-336px         llama2-13b-pure           no-align+gelu-mlp        resize-naive  llava-lvis4v-lrv  2           finetune
prism-siglip-controlled+7b            siglip-vit-so400m-384px  llama2-7b-pure            no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
prism-siglip-controlled+13b           siglip-vit-so400m-384px  llama2-13b-pure           no-align+gelu-mlp        resize-naive  llava-v15         1           finetune
prism-siglip+7b                       siglip-vit-so400m-384px  llama2-7b-pure            no-align+gelu-mlp        resize-naive  llava-lvis4v-lrv  2           finetune
prism-siglip+13b                      siglip-vit-so400m-384px  llama2-13b-pure           no-align+gelu-mlp        resize-naive  llava-lvis4v-lrv  2           finetune
prism-dinosiglip-controlled+7b        dinosiglip-vit-so-384px  llama2-7b-pure            no-align+fused-gelu-mlp  resize-naive  llava-v15         1           finetune
prism-dinosiglip-controlled+13b       dinosiglip-vit-so-384px  llama2-13b-pure           no-align+fused-gelu-mlp  resize-naive  llava-v15         1           finetune
prism-dinosiglip+7b                   dinosiglip-vit-so-384px  llama2-7b-pure            no-align+fused-gelu-mlp  resize-naive  llava-lvis4v-lrv  2           finetune
prism-dinosiglip+13b                  dinosiglip-vit-so-384px  llama2-13b-pure           no-align+fused-gelu-mlp  resize-naive  llava-lvis4v-lrv  2           finetune
prism-dinosiglip-224px-controlled+7b  dinosiglip-vit-so-224px  llama2-7b-pure            no-align+fused-gelu-mlp  resize-naive  llava-v15         1           finetune
prism-dinosiglip-224px+7b             dinosiglip-vit-so-224px  llama2-7b-pure            no-align+fused-gelu-mlp  resize-naive  llava-lvis4v-lrv  2           finetune
"""
ROWS = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}
NAMES = sorted(ROWS)

RESIZE = {"resize-naive": "squash", "resize-crop": "crop", "letterbox": "pad"}
DATA = {"llava-v15": "llava-v1.5-instruct"}  # the other sets have Prismatic's names
PATCHES = {"clip-vit-l-336px": 576, "in1k-vit-l": 196, "dinoclip-vit-l-336px": 576, "siglip-vit-so400m-384px": 729, "dinosiglip-vit-so-384px": 729}
PROMPTS = {  # of PromptBuilders that differ from what the model's own template says; "" is its own
    "llama2-7b-chat": "prismatic-llama-2-chat",
    "llama2-13b-chat": "prismatic-llama-2-chat",
    "mistral-v0.1-7b-instruct": "prismatic-mistral-instruct",
    "phi-2-3b": "prismatic-phi-2",
}


def test_set_of_names_is_complete():
    assert len(NAMES) == 49
    assert sorted(RUNS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_composition_is_the_originals(name):
    vision, language, connector, resize, *_ = ROWS[name]
    model = PRESETS[f"{name}/finetune"].model
    assert VISION.resolve(vision) == model.vision
    assert LANGUAGE.resolve(language) == model.language
    assert CONNECTORS.resolve(connector.removeprefix("no-align+")) == model.connector
    assert model.resize == RESIZE[resize]
    assert model.template == PROMPTS.get(language, "")
    assert model.lora == LoRATowers()
    assert model.run_name == name.replace("+", "-")


@pytest.mark.parametrize("name", NAMES)
def test_finetune_stage_is_the_originals(name):
    vision, language, _, _, data, length, last = ROWS[name]
    stage = PRESETS[f"{name}/finetune"].stage
    assert stage.dataset == DATA.get(data, data)
    assert stage.lr == LearningRates(vision=2e-5 if last == "full-finetune" else None, connector=2e-5, language=2e-5)
    assert (stage.global_batch_size, stage.per_device_batch_size) == (128, 16)
    assert (stage.weight_decay, stage.clip_norm, stage.betas) == (0.1, 1.0, (0.9, 0.999))
    assert (stage.schedule, stage.warmup_ratio, stage.final_lr_ratio) == ("cosine", 0.03, 0.0)
    assert (f"{stage.max_steps}-steps" if stage.max_steps else f"{stage.epochs:g}") == length
    assert stage.group_by_length
    assert stage.gradient_checkpointing == ("language",)
    assert stage.max_length == (2048 if language == "phi-2-3b" else 2048 + PATCHES.get(vision, 256))  # 2,048 tokens of text


@pytest.mark.parametrize("name", NAMES)
def test_align_stage_exists_where_the_original_has_one(name):
    connector = ROWS[name][2]
    assert (f"{name}/align" in PRESETS) == (not connector.startswith("no-align+"))


@pytest.mark.parametrize("name", [name for name in NAMES if not ROWS[name][2].startswith("no-align+")])
def test_align_stage_is_the_originals(name):
    stage = PRESETS[f"{name}/align"].stage
    assert stage.dataset == "llava-laion-cc-sbu-558k"
    assert stage.lr == LearningRates(connector=1e-3)
    assert (stage.global_batch_size, stage.per_device_batch_size, stage.epochs, stage.max_steps) == (256, 16, 1.0, None)
    assert (stage.weight_decay, stage.clip_norm, stage.schedule, stage.warmup_ratio) == (0.0, 1.0, "cosine", 0.03)
    assert stage.template == "caption"
