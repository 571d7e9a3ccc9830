"""A dual encoder as `CLIPModel` or `SiglipModel` of transformers: a folder with weights, config, tokenizer and image processor.

Both towers must be of that kind. A linear head becomes part of the projection behind its tower; CLIP's projections have no bias, so one goes into the
layer norm before it. SigLIP's image tower ends in a residual sum, into which no head can be folded.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm.backbones.language.huggingface import ABOUT_THE_FILE
from vlm.backbones.loading import quiet
from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.backbones.vision.base import Normalize
from vlm.errors import ConfigError
from vlm.export.folding import LinearMap, head_map, hide_bias, identity
from vlm.export.parity import Foreign, Vectors
from vlm.models.dual_encoder import DualEncoder
from vlm.types import ImagePolicy

Writer = Callable[[Path], Foreign]
TOWERS = {"clip_vision_model": "CLIP", "clip_text_model": "CLIP", "siglip_vision_model": "SigLIP", "siglip_text_model": "SigLIP"}
BACKENDS = ("torchvision", "pil")


@dataclass(frozen=True)
class Pair:
    """What a two-tower model of transformers is made of.

    Attributes:
        kind: Begin of the names of its classes.
        config: Arguments of its config beside the towers' own.
        text_config: What the text tower's config says otherwise.
        weights: Tensors that are not the towers' own, by their names in the model.
    """

    kind: str
    config: Mapping[str, Any]
    text_config: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def as_transformers(model: DualEncoder) -> Writer:
    """What writes the model as a folder of transformers, and loads it from there.

    Raises:
        ConfigError: If transformers has no model that computes the same.
    """
    kinds = {side: kind_of(encoder) for side, encoder in (("image", model.image), ("text", model.text))}
    if kinds["image"] is None or kinds["image"] != kinds["text"]:
        named = " and ".join(f"this {side} encoder is {'neither' if kind is None else kind + chr(39) + 's'}" for side, kind in kinds.items())
        raise ConfigError(f"transformers' CLIPModel and SiglipModel have two towers of the same kind, CLIP's or SigLIP's; {named}")
    pair = {"CLIP": _clip, "SigLIP": _siglip}[kinds["image"]](model)
    return lambda folder: _write(model, pair, folder)


def kind_of(encoder: Any) -> str | None:
    """CLIP or SigLIP, if an encoder's tower is one of transformers' of that kind."""
    config = getattr(getattr(encoder.tower, "model", None), "config", None)
    return TOWERS.get(getattr(config, "model_type", ""))


def maps_of(model: DualEncoder) -> tuple[LinearMap | None, LinearMap | None]:
    """The heads of both sides as linear maps; None for a side without one.

    Raises:
        ConfigError: If one of them is no linear map.
    """
    if model.heads is None:
        return None, None
    return head_map(model.heads.image_head, "image"), head_map(model.heads.text_head, "text")


def _clip(model: DualEncoder) -> Pair:
    scale, bias = model.logit_scale()
    if bias:
        raise ConfigError(f"CLIPModel's logits have no bias, and this model's have {bias:g}, as its loss is sigmoid")
    image_tower, text_tower = model.image.tower.model, model.text.tower.model
    projections = (("image", model.image.projection, image_tower.post_layernorm, "visual_projection", "vision_model.post_layernorm"),)
    projections += (("text", text_tower.text_projection, text_tower.text_model.final_layer_norm, "text_projection", "text_model.final_layer_norm"),)
    weights: dict[str, Tensor] = {"logit_scale": torch.tensor(math.log(scale))}
    width = 0
    for head, (side, projection, norm, name, norm_name) in zip(maps_of(model), projections, strict=True):
        own = LinearMap.of(projection) if isinstance(projection, nn.Linear) else identity(model.image.width)
        linear = own if head is None else head.after(own)
        weights |= {f"{name}.weight": linear.weight, f"{norm_name}.bias": hide_bias(linear, norm, side)}
        width = len(linear.weight)
    return Pair("CLIP", {"projection_dim": width}, {"projection_dim": width}, weights)


def _siglip(model: DualEncoder) -> Pair:
    image_head, text_head = maps_of(model)
    if image_head is not None:
        raise ConfigError("SigLIP's image tower ends in a residual sum, not in a projection, so the image head cannot be folded into it")
    last = model.text.tower.model.head
    linear = LinearMap.of(last) if text_head is None else text_head.after(LinearMap.of(last))
    scale, bias = model.logit_scale()
    weights = {"logit_scale": torch.tensor([math.log(scale)]), "logit_bias": torch.tensor([bias]), "text_model.head.weight": linear.weight}
    weights["text_model.head.bias"] = torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias
    return Pair("Siglip", {}, {"projection_size": len(linear.weight)}, weights)


def _write(model: DualEncoder, pair: Pair, folder: Path) -> Foreign:
    import transformers

    names: Any = transformers
    towers = {"vision_config": _config(model.image.tower.model), "text_config": _config(model.text.tower.model) | dict(pair.text_config)}
    whole = getattr(names, f"{pair.kind}Model")(getattr(names, f"{pair.kind}Config")(**towers, **pair.config)).eval()
    text = model.text.tower.model
    state = {f"vision_model.{name}": tensor for name, tensor in model.image.tower.model.state_dict().items()}
    state |= {f"text_model.{name}": tensor for name, tensor in getattr(text, "text_model", text).state_dict().items()}
    whole.load_state_dict({name: tensor.float() for name, tensor in (state | dict(pair.weights)).items()})
    with quiet(True):
        whole.save_pretrained(folder)
    _tokenizer(model, pair.kind).save_pretrained(folder)
    image_processor(pair.kind, model.image.image_policy, model.image.tower.normalize).save_pretrained(folder)
    return load(folder, pair.kind)


def _config(tower: Any) -> dict[str, Any]:
    return {key: value for key, value in tower.config.to_dict().items() if key not in ABOUT_THE_FILE}


def _tokenizer(model: DualEncoder, kind: str) -> Any:
    """A copy of the tokenizer that pads and cuts as the tower was trained; SigLIP reads its padding, so no mask is made for it."""
    tokenizer = copy.deepcopy(model.text.tokenizer)
    tokenizer.model_max_length, tokenizer.padding_side = model.text.max_length, "right"
    if kind == "Siglip":
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]  # the latter says that it is to be stored
    return tokenizer


def image_processor(kind: str, policy: ImagePolicy, normalize: Normalize) -> Any:
    """transformers' image processor that does what a policy says.

    Args:
        kind: Begin of the name of its class.
        policy: How a picture becomes pixels.
        normalize: The means and deviations.

    Raises:
        ConfigError: If it is a policy that pads.
    """
    import transformers

    if policy.mode == "pad":
        raise ConfigError("transformers' image processors of CLIP and SigLIP do not pad pictures to squares")
    square = {"height": policy.size, "width": policy.size}
    cut = {"do_center_crop": True, "crop_size": square} if policy.mode == "crop" else {"do_center_crop": False} if kind == "CLIP" else {}
    size = {"shortest_edge": policy.short_side or policy.size} if policy.mode == "crop" else square
    constants = {f"image_{name}": list(normalize.constants[name]) for name in ("mean", "std")}
    make: Any = getattr(transformers, f"{kind}ImageProcessorPil")
    return make(size=size, resample=int(Image.Resampling[policy.resample.upper()]), **cut, **constants)


def load(folder: Path, kind: str) -> Foreign:
    """The model of a folder, as a user of transformers loads it."""
    import transformers

    names: Any = transformers
    with quiet(True):
        model = getattr(names, f"{kind}Model").from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(pixels: Tensor, texts: Sequence[str]) -> Vectors:
        tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        said = model(pixel_values=pixels, **tokens)
        return Vectors(said.image_embeds, said.text_embeds, said.logits_per_image)

    return Foreign(encode, {backend: processor_of(folder, backend) for backend in BACKENDS})


def processor_of(folder: Path, backend: str) -> Callable[[Image.Image], Tensor]:
    """The folder's image processor on one of transformers' backends."""
    import transformers

    prepare_torchvision()
    process: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, local_files_only=True)
    return lambda image: process(image, return_tensors="pt").pixel_values[0]
