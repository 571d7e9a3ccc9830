"""A dual encoder as `CustomTextCLIP` of open_clip: a folder for `open_clip.create_model_and_transforms("local-dir:<folder>")`.

The image tower is one of open_clip's (its own ViTs, or timm's inside it) or CLIP's of transformers, whose weights go by other names there. The text tower
is one of open_clip's, or a BERT or RoBERTa with mean or first-token pooling. Linear heads become part of the projections.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.backbones.image.open_clip import OpenClipTower as ImageTower
from vlm.backbones.image.open_clip import without_logs
from vlm.backbones.loading import is_folder, quiet, require
from vlm.backbones.text.open_clip import OpenClipTower as TextTower
from vlm.backbones.text.pooled import PooledTower
from vlm.backbones.text.reading import BARE
from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.backbones.writing import write_tensors
from vlm.errors import ConfigError
from vlm.export.folding import LinearMap, hide_bias, identity
from vlm.export.parity import Foreign, Vectors, vectors_of
from vlm.export.transformers_pair import Writer, kind_of, maps_of
from vlm.models.dual_encoder import DualEncoder
from vlm.types import ImagePolicy

POOLERS = {"mean": "mean_pooler", "bos_token": "cls_last_hidden_state_pooler"}
TEXT_MODELS = ("bert", "roberta", "xlm-roberta")  # of open_clip's hf_configs.py, those without a decoder
RESIZE = {"crop": "shortest", "squash": "squash"}
ACTIVATIONS = {"quick_gelu": True, "gelu": False}  # and whether they are open_clip's quick_gelu
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@dataclass(frozen=True)
class Half:
    """One side of a model of open_clip.

    Attributes:
        config: Its vision_cfg or text_cfg.
        state: Its tensors, named within the side.
        width: Width of its vectors.
        model: What the whole model's config says because of it.
        save: Writes what else the folder needs, and returns what the config then says of the side, and a note.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    width: int
    model: Mapping[str, Any] = field(default_factory=dict)
    save: Callable[[Path], tuple[Mapping[str, Any], str]] = lambda _: ({}, "")


def as_open_clip(model: DualEncoder) -> Writer:
    """What writes the model as a folder of open_clip, and loads it from there.

    Raises:
        ConfigError: If open_clip has no model that computes the same.
        MissingPackageError: If open_clip is not installed.
    """
    require("open_clip", "An export to open_clip", extra="openclip")
    prepare_torchvision()
    image_head, text_head = maps_of(model)
    image, text = _image(model.image, image_head), _text(model, text_head)
    if clash := sorted(key for key in image.model.keys() & text.model.keys() if image.model[key] != text.model[key]):
        raise ConfigError(f"an open_clip model has one {clash[0]} for both towers; here it is {image.model[clash[0]]} and {text.model[clash[0]]}")
    policy: ImagePolicy = model.image.image_policy
    if policy.mode not in RESIZE or policy.short_side not in (None, policy.size):
        raise ConfigError(f"open_clip's transforms do not resize pictures as this image encoder does ({policy})")
    return lambda folder: _write(model, image, text, folder)


def _image(encoder: Any, head: LinearMap | None) -> Half:
    if isinstance(encoder.tower, ImageTower):
        return _open_clip_image(encoder, head)
    if kind_of(encoder) == "CLIP":
        return _clip_image(encoder, head)
    raise ConfigError("the image tower must be one of open_clip's or CLIP's; this one is neither")


def _open_clip_image(encoder: Any, head: LinearMap | None) -> Half:
    """A tower of open_clip, its projection followed by the head."""
    import open_clip
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    architecture: Any = encoder.architecture
    visual: Any = encoder.tower.visual
    whole: Any = deepcopy(open_clip.get_model_config(architecture["name"]))
    if "multimodal_cfg" in whole:
        raise ConfigError(f"{architecture['name']} is a CoCa, whose image tower gives tokens besides")
    config, state = whole["vision_cfg"] | {"timm_model_pretrained": False}, visual.state_dict()
    shared = {"quick_gelu": architecture["quick_gelu"]} if isinstance(visual, VisionTransformer) else {}
    if head is None:
        return Half(config, state, whole["embed_dim"], shared)
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        linear = head.after(LinearMap(visual.proj.detach().double().T))
        folded = {"proj": linear.weight.T, "ln_post.bias": hide_bias(linear, visual.ln_post, "image")}
    elif isinstance(visual, TimmModel) and isinstance(last := getattr(visual.head, "proj", None), nn.Linear):
        linear = head.after(LinearMap.of(last))
        config |= {"timm_proj_bias": True}
        folded = {"head.proj.weight": linear.weight, "head.proj.bias": _or_zeros(linear)}
    else:
        raise ConfigError(f"the image tower of {architecture['name']} ends in no linear projection, so the image head cannot be folded into it")
    return Half(config, state | folded, len(linear.weight), shared)


def _or_zeros(linear: LinearMap) -> Tensor:
    return torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias


def _clip_image(encoder: Any, head: LinearMap | None) -> Half:
    """CLIP's tower of transformers by open_clip's names, which are OpenAI's: attention in one matrix, projections transposed."""
    tower = encoder.tower.model
    config = tower.config
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"open_clip's ViTs have no activation {config.hidden_act!r}; it knows {' and '.join(ACTIVATIONS)}")
    own = LinearMap.of(encoder.projection) if isinstance(encoder.projection, nn.Linear) else identity(encoder.width)
    linear = own if head is None else head.after(own)
    state = _openai_names(tower.state_dict(), config.num_hidden_layers)
    state |= {"proj": linear.weight.T, "ln_post.bias": hide_bias(linear, tower.post_layernorm, "image")}
    sizes = {
        "image_size": config.image_size,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "head_width": config.hidden_size // config.num_attention_heads,
        "patch_size": config.patch_size,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }
    return Half(sizes, state, len(linear.weight), {"quick_gelu": ACTIVATIONS[config.hidden_act]})


def _openai_names(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    named = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
    }
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        named |= {f"ln_pre.{kind}": state[f"pre_layrnorm.{kind}"], f"ln_post.{kind}": state[f"post_layernorm.{kind}"]}
        for i in range(num_layers):
            theirs, ours = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            named |= {f"{theirs}.{new}.{kind}": state[f"{ours}.{old}.{kind}"] for old, new in layers.items()}
            named[f"{theirs}.attn.in_proj_{kind}"] = torch.cat([state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
    return named


def _text(model: DualEncoder, head: LinearMap | None) -> Half:
    if isinstance(model.text.tower, TextTower):
        return _open_clip_text(model.text, head)
    if isinstance(model.text.tower, PooledTower):
        return _transformers_text(model, head)
    raise ConfigError(
        f"the text tower must be one of open_clip's, or one of transformers' that is pooled ({', '.join(TEXT_MODELS)}); this one is neither"
    )


def _open_clip_text(encoder: Any, head: LinearMap | None) -> Half:
    """A text tower of open_clip, its projection followed by the head."""
    import open_clip
    from open_clip.model import convert_to_custom_text_state_dict
    from open_clip.tokenizer import HFTokenizer

    name = encoder.architecture["name"]
    whole: Any = deepcopy(open_clip.get_model_config(name))
    if "multimodal_cfg" in whole or "hf_model_name" in whole["text_cfg"]:
        raise ConfigError(f"the text tower of {name} is one of transformers' inside open_clip, or a CoCa's")
    state = convert_to_custom_text_state_dict(encoder.tower.model.state_dict())
    state = {key.removeprefix("text."): tensor for key, tensor in state.items() if key.startswith("text.")}
    config, width = whole["text_cfg"], whole["embed_dim"]
    if head is not None:
        last = getattr(encoder.tower.model, "text", encoder.tower.model).text_projection
        if last is None:
            raise ConfigError(f"the text tower of {name} ends in no projection, so the text head cannot be folded into it")
        linear = head.after(LinearMap.of(last) if isinstance(last, nn.Linear) else LinearMap(last.detach().double().T))
        config, width = config | {"proj_bias": True}, len(linear.weight)
        state = {key: tensor for key, tensor in state.items() if not key.startswith("text_projection")}
        state |= {"text_projection.weight": linear.weight, "text_projection.bias": _or_zeros(linear)}

    def save(folder: Path) -> tuple[Mapping[str, Any], str]:
        if isinstance(encoder.tokenizer, HFTokenizer):
            encoder.tokenizer.save_pretrained(folder)
        return {}, ""

    return Half(config, state, width, {"quick_gelu": bool(whole.get("quick_gelu", False))}, save)


def _transformers_text(model: DualEncoder, head: LinearMap | None) -> Half:
    """A BERT or RoBERTa, pooled, with the head as its projection; what a bias adds, its last layer norm adds."""
    encoder, tower = model.text, model.text.tower.model
    kind, reading = tower.config.model_type, encoder.reading
    if kind not in TEXT_MODELS or getattr(tower.config, "is_decoder", False):
        raise ConfigError(f"open_clip builds text towers of transformers of the kinds {', '.join(TEXT_MODELS)}; this one is of kind {kind}")
    instruction = reading.instruction or (model.config.instruction if model.config else "")
    if reading.pooling not in POOLERS or reading.template != BARE or instruction or reading.doc_max_length is not None:
        raise ConfigError(
            "open_clip gives texts to the tokenizer as they are, and takes the mean or the first token; this text encoder "
            f"pools by {reading.pooling}, with template {reading.template!r} and instruction {instruction!r}"
        )
    if encoder.tokenizer.pad_token_id != tower.config.pad_token_id:
        raise ConfigError("open_clip masks what equals the pad_token_id of the text tower's config, and the tokenizer pads with another token")
    linear = head or identity(encoder.width)
    norm = f"encoder.layer.{tower.config.num_hidden_layers - 1}.output.LayerNorm"
    state = {f"transformer.{name}": tensor for name, tensor in tower.state_dict().items()}
    state[f"transformer.{norm}.bias"] = hide_bias(linear, tower.get_submodule(norm), "text")
    if head is not None:
        state["proj.weight"] = head.weight
    pooled = {"hf_proj_type": None if head is None else "linear", "hf_pooler_type": POOLERS[reading.pooling], "hf_model_pretrained": False}
    return Half(pooled | {"context_length": encoder.max_length}, state, len(linear.weight), save=lambda folder: _save_text(encoder, folder))


def _save_text(encoder: Any, folder: Path) -> tuple[Mapping[str, Any], str]:
    """The tokenizer, and the config that open_clip builds the text tower from: by its hub id, or by where the folder lies."""
    encoder.tokenizer.save_pretrained(folder)
    encoder.tower.model.config.save_pretrained(folder)
    source = str(encoder.source)
    if not is_folder(source):
        return {"hf_model_name": source, "hf_tokenizer_name": source}, ""
    place = str(folder.resolve())
    note = (
        f"{CONFIG} names {place} as hf_model_name, because open_clip looks for the text tower's config.json there: change it where the folder moves"
    )
    return {"hf_model_name": place, "hf_tokenizer_name": place}, note


def _write(model: DualEncoder, image: Half, text: Half, folder: Path) -> Foreign:
    from open_clip.model import CustomTextCLIP

    scale, bias = model.logit_scale()
    named, note = text.save(folder)
    config = {"embed_dim": image.width, **image.model, **text.model, "vision_cfg": dict(image.config), "text_cfg": {**text.config, **named}}
    config |= {"init_logit_bias": bias} if bias else {}
    make: Any = CustomTextCLIP
    whole = make(**deepcopy(config))
    state = {f"visual.{name}": tensor for name, tensor in image.state.items()} | {f"text.{name}": tensor for name, tensor in text.state.items()}
    state |= {"logit_scale": torch.tensor(math.log(scale))} | ({"logit_bias": torch.tensor(bias)} if bias else {})
    whole.load_state_dict({name: tensor.float().reshape(whole.state_dict()[name].shape) for name, tensor in state.items()})
    write_tensors(whole.state_dict(), folder / WEIGHTS)
    said = {"model_cfg": config | {"custom_text": True}, "preprocess_cfg": _preprocess(model)}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return load(folder, notes=[note] if note else [])


def _preprocess(model: DualEncoder) -> dict[str, Any]:
    policy, normalize = model.image.image_policy, model.image.tower.normalize
    constants = {name: list(normalize.constants[name]) for name in ("mean", "std")}
    return {"size": policy.size, "mode": "RGB", "interpolation": policy.resample, "resize_mode": RESIZE[policy.mode], **constants}


def load(folder: Path, *, notes: Sequence[str] = ()) -> Foreign:
    """The model of a folder, as a user of open_clip loads it."""
    import open_clip

    name = f"local-dir:{folder}"
    with without_logs(), quiet(True):
        loaded: Any = open_clip.create_model_and_transforms(name)
        tokenizer: Any = open_clip.get_tokenizer(name)
    model, _, transform = loaded
    model.eval()

    def encode(pixels: Tensor, texts: Sequence[str]) -> Vectors:
        bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
        return vectors_of(model.encode_image(pixels), model.encode_text(tokenizer(list(texts))), scale=float(model.logit_scale.exp()), bias=bias)

    return Foreign(encode, {"torchvision": transform}, notes)
