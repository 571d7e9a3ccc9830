"""A dual encoder in LLM2CLIP's layout (arXiv:2411.04997): CLIP's image tower, its projection and the text adapter in one file, beside a language model elsewhere.

Fits a residual head with input normalization l2 on a language model that is read as LLM2CLIP reads it. The parity is that of our own loader: the remote
code of the published checkpoints does not run on transformers 5.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.backbones.image.base import stored_scale
from vlm.backbones.image.clip import clip_spec
from vlm.backbones.image.llm2clip import llm2clip as llm2clip_image
from vlm.backbones.loading import Load
from vlm.backbones.text.llm2clip import ADAPTER, READING, llm2clip_state, read_adapter
from vlm.backbones.text.pooled import PooledTower
from vlm.backbones.writing import write_tensors
from vlm.errors import ConfigError
from vlm.export.folding import LinearMap, head_map, hide_bias, identity
from vlm.export.parity import Foreign, Vectors, vectors_of
from vlm.export.transformers_pair import BACKENDS, Writer, image_processor, kind_of, processor_of
from vlm.models.dual_encoder import DualEncoder

FILE = "model.safetensors"


def as_llm2clip(model: DualEncoder) -> Writer:
    """What writes the model as a CLIP half of LLM2CLIP, and loads it from there with the language model.

    Raises:
        ConfigError: If that layout cannot hold the model.
    """
    heads, text = model.heads, model.text
    if heads is None or heads.text_head.options.kind != "residual" or heads.text_head.options.normalize_input != "l2":
        raise ConfigError("LLM2CLIP's layout holds a text head of kind residual with --model.text-head.normalize-input l2")
    if kind_of(model.image) != "CLIP":
        raise ConfigError("LLM2CLIP's image tower is CLIP's; this one is not")
    if not isinstance(text.tower, PooledTower) or text.reading != READING or text.tower.adapters or (model.config and model.config.instruction):
        raise ConfigError(
            "LLM2CLIP's text tower is a language model without adapters that are merged at load, read by the template of llm2clip-llama3-8b-text and "
            "without an instruction; this text encoder is read differently"
        )
    scale, bias = model.logit_scale()
    if bias:
        raise ConfigError(f"LLM2CLIP's logits have no bias, and this model's have {bias:g}, as its loss is sigmoid")
    state = _image_half(model) | {f"{ADAPTER}{name}": tensor for name, tensor in heads.text_head.adaptor.state_dict().items()}
    state["logit_scale"] = torch.tensor(math.log(scale))
    return lambda folder: _write(model, state, folder)


def _image_half(model: DualEncoder) -> dict[str, Tensor]:
    assert model.heads is not None
    tower, projection = model.image.tower.model, model.image.projection
    own = LinearMap.of(projection) if isinstance(projection, nn.Linear) else identity(model.image.width)
    head = head_map(model.heads.image_head, "image")
    linear = own if head is None else head.after(own)
    state = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    return state | {"visual_projection.weight": linear.weight, "vision_model.post_layernorm.bias": hide_bias(linear, tower.post_layernorm, "image")}


def _write(model: DualEncoder, state: dict[str, Tensor], folder: Path) -> Foreign:
    write_tensors({name: tensor.float() for name, tensor in state.items()}, folder / FILE)
    width = len(state["visual_projection.weight"])
    config = {"vision_config": model.image.tower.model.config.to_dict(), "projection_dim": width, "text_source": str(model.text.source)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    image_processor("CLIP", model.image.image_policy, model.image.tower.normalize).save_pretrained(folder)
    return load(model, folder, width)


def load(model: DualEncoder, folder: Path, width: int) -> Foreign:
    """Both halves by our loaders of LLM2CLIP; the language model, of which nothing was written, is not loaded a second time.

    Args:
        model: What the folder was made of.
        folder: The folder.
        width: Width of the joint space.
    """
    spec = replace(clip_spec(model.image.vision, width=width), build=llm2clip_image)
    image = spec.build(spec, Load(source=folder)).eval()
    adapter = read_adapter(llm2clip_state(folder), folder, normalize=True)
    scale, _ = stored_scale(spec, Load(source=folder))

    def encode(pixels: Tensor, texts: Sequence[str]) -> Vectors:
        return vectors_of(image.projection(image.tower.model(pixels).pooler_output), adapter(model.text.encode(list(texts))), scale=scale)

    note = f"its texts are read by llm2clip:{folder}+{model.text.source}; LLM2CLIP's own code was not run"
    return Foreign(encode, {backend: processor_of(folder, backend) for backend in BACKENDS}, [note])
