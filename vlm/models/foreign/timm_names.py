"""timm's vision transformers (0.9 and later) as transformers' CLIP, SigLIP and DINOv2 towers: names, fused projections, position embeddings.

The inner product is the same; timm computes SigLIP with exact GELU, which the config says here too.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlm.errors import CheckpointError

CONFIGS = {"siglip": "SiglipVisionConfig", "clip": "CLIPVisionConfig", "dinov2": "Dinov2WithRegistersConfig"}
ATTENTION = {"siglip": "self_attn", "clip": "self_attn", "dinov2": "attention"}
LAYERS = {"siglip": "encoder.layers", "clip": "encoder.layers", "dinov2": "encoder.layer"}

# Endings of names: of all families, of blocks of CLIP and SigLIP, of DINOv2. What stands for a projection is split, see `_split`.
VIT = {"norm1.": "layer_norm1.", "norm2.": "layer_norm2.", "attn.proj.": "self_attn.out_proj.", "mlp.": "mlp."}
DINO = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.proj.": "attention.o_proj.",
    "mlp.": "mlp.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
BLOCKS = {"siglip": VIT, "clip": VIT, "dinov2": DINO}
OUTSIDE: Mapping[str, Mapping[str, str]] = {
    "siglip": {
        "patch_embed.proj.": "embeddings.patch_embedding.",
        "norm.": "post_layernorm.",
        "attn_pool.latent": "head.probe",
        "attn_pool.proj.": "head.attention.out_proj.",
        "attn_pool.norm.": "head.layernorm.",
        "attn_pool.mlp.": "head.mlp.",
    },
    "clip": {"patch_embed.proj.": "embeddings.patch_embedding.", "norm_pre.": "pre_layrnorm.", "norm.": "post_layernorm."},
    "dinov2": {
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
    },
}


@dataclass(frozen=True)
class Tower:
    """What the tensors of a timm tower do not say.

    Attributes:
        family: siglip, clip or dinov2.
        num_heads: Attention heads.
        act: Activation, by transformers' name.
        image_size: Side of the pictures, in pixels.
        epsilon: Of the layer norms.
        resizes: Whether position embeddings of another grid are brought to the size of the pictures, as timm does it with published weights.
    """

    family: str
    num_heads: int
    act: str
    image_size: int
    epsilon: float
    resizes: bool = False


def described(tower: Tower, values: Mapping[str, Any], *, origin: Any) -> Tower:
    """A tower with what a file beside its weights says of it, by the names of timm's arguments.

    Raises:
        CheckpointError: If the features are not those of the last block but one, without norm.
    """
    depth, block = values.get("depth"), values.get("feature_block")
    if (block is not None and depth is not None and block != depth - 2) or values.get("feature_norm"):
        raise CheckpointError(f"{origin} takes features of block {block} of {depth}; Prismatic takes those of the last but one, without norm.")
    return replace(
        tower,
        num_heads=values.get("num_heads", tower.num_heads),
        act=values.get("act_layer", tower.act),
        image_size=values.get("img_size", tower.image_size),
        epsilon=values.get("layer_norm_eps", tower.epsilon),
    )


def from_timm(tensors: Mapping[str, Tensor], tower: Tower, *, origin: Any) -> tuple[dict[str, Tensor], Any]:
    """Weights by transformers' names, and transformers' config, whose sizes are those of the tensors.

    Args:
        tensors: timm's state of a vision transformer without classifier.
        tower: What they do not say.
        origin: Where they come from, for messages.

    Raises:
        CheckpointError: If a tensor that sizes the tower is missing, or a name is not one of such a tower.
    """
    try:
        patch, fc1 = tensors["patch_embed.proj.weight"], tensors["blocks.0.mlp.fc1.weight"]
        position = tensors["pos_embed"]
    except KeyError as error:
        raise CheckpointError(f"{origin} lacks {error.args[0]}: it is no vision transformer of timm. Name another --vision-source.") from None
    side, own = tower.image_size // patch.shape[-1], math.isqrt(position.shape[1])
    if own != side and not tower.resizes:
        raise CheckpointError(
            f"{origin} has position embeddings for a grid of {own} x {own} patches, pictures of {tower.image_size} px have {side} x {side}. "
            "Say the tower's sizes in a JSON file beside its weights, and name them with --vision-source."
        )
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    width, patch_size = patch.shape[0], patch.shape[-1]
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in ("pos_embed", "cls_token") or (name == "cls_token" and tower.family == "dinov2"):
            renamed |= _renamed(name, tensor, tower.family, origin)
    renamed |= _positions(position, tensors, tower, side)
    if "head.attention.q.weight" in renamed:
        renamed |= _pooling(renamed)
    values = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": tower.num_heads, "patch_size": patch_size}
    values |= {"image_size": tower.image_size, "hidden_act": tower.act, "layer_norm_eps": tower.epsilon}
    return renamed, _config(values, fc1.shape[0], tensors, tower)


def _config(values: dict[str, Any], hidden: int, tensors: Mapping[str, Tensor], tower: Tower) -> Any:
    import transformers

    own: dict[str, Any] = {"intermediate_size": hidden}
    if tower.family == "siglip":
        own["vision_use_head"] = "attn_pool.latent" in tensors
    if tower.family == "dinov2":
        own = {"mlp_ratio": hidden // values["hidden_size"], "num_register_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0}
    return getattr(transformers, CONFIGS[tower.family])(**values, **own)


def _renamed(name: str, tensor: Tensor, family: str, origin: Any) -> dict[str, Tensor]:
    block = re.match(r"blocks\.(\d+)\.(.*)", name)
    if block is None:
        if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
            return {name.replace("attn_pool", "head.attention"): tensor}
        return {_by_table(name, name, OUTSIDE[family], origin): tensor}
    place, rest = f"{LAYERS[family]}.{block[1]}.", block[2]
    if rest.startswith("attn.qkv."):
        ending = rest.removeprefix("attn.qkv.")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}{ATTENTION[family]}.{letter}_proj.{ending}": part.clone() for letter, part in parts}
    return {place + _by_table(rest, name, BLOCKS[family], origin): tensor}


def _by_table(name: str, whole: str, table: Mapping[str, str], origin: Any) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise CheckpointError(f"{origin} holds {whole}, which no vision transformer of this family has. Name another --vision-source.")


def _pooling(renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch's attention has queries, keys and values in one matrix."""
    pieces = [(renamed.pop(f"head.attention.q.{ending}"), renamed.pop(f"head.attention.kv.{ending}")) for ending in ("weight", "bias")]
    weight, bias = (torch.cat(pair) for pair in pieces)
    return {"head.attention.in_proj_weight": weight, "head.attention.in_proj_bias": bias}


def _positions(position: Float[Tensor, "1 positions D"], tensors: Mapping[str, Tensor], tower: Tower, side: int) -> dict[str, Tensor]:
    """Position embeddings for a grid of so many patches a side; timm's DINOv2 has none for the class token, its CLIP one before the patches."""
    if tower.family == "siglip":
        return {"embeddings.position_embedding.weight": resized(position, side)[0]}
    if tower.family == "dinov2":
        none = position.new_zeros(1, 1, position.shape[-1])  # the class token contains its own
        return {
            "embeddings.position_embeddings": torch.cat([none, resized(position, side)], dim=1),
            "embeddings.mask_token": position.new_zeros(1, position.shape[-1]),
        }
    first, patches = position[:, :1], position[:, 1:]
    positions = {"embeddings.position_embedding.weight": torch.cat([first, resized(patches, side)], dim=1)[0]}
    return positions | {"embeddings.class_embedding": tensors["cls_token"].flatten()}


def resized(position: Float[Tensor, "1 P D"], side: int) -> Float[Tensor, "1 P2 D"]:
    """Position embeddings of a square grid on another one, as timm does it when it loads weights: bicubic, antialiased, in fp32."""
    own = math.isqrt(position.shape[1])
    if own == side:
        return position
    grid = position.float().reshape(1, own, own, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(position.dtype)
