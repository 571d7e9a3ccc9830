"""What a vision backbone is before any download (`VisionSpec`), normalization, and the wrapper of the transformers towers. Knows no single family.

Patch features follow the LLaVA and Prismatic lineage: the output of an inner layer (the last but one by default), without the final norm and
without prefix tokens (class token, registers).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.loading import Load
from vlm.errors import ConfigError

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's published preprocessing
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP and the Google ViTs

# What an adapter gets by default: the attention projections, by transformers' names for those of CLIP and SigLIP, and of DINOv2 and ViT.
CLIP_ATTENTION, VIT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """One vision backbone, known before any download.

    Attributes:
        build: Makes the module; see `Load`.
        source: Hub id, or what else `build` loads by default.
        architecture: Config values that size the model.
        width: Width of a patch feature.
        image_size: Side of the square input, in pixels.
        num_patches: Patch features of one tile, prefix tokens not counted.
        num_parameters: Parameters of the tower: with its pooling head, without projection into a joint space and without classifier.
        pooled_width: Width of the pooled vector, where it is not `width`.
        mean: Channel means that are subtracted, of values in 0 to 1.
        std: Channel deviations that are divided by.
        resample: PIL filter of the resize in the original preprocessing.
        feature_layer: Default layer of the patch features; see `Load`.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names, among them Prismatic's.
        package: Optional pip package that `build` needs, or empty.
        parts: Names of the backbones that a fused one joins.
        lora_targets: Names of the linear layers that an adapter gets by default (their last words), or `all-linear`.
    """

    build: Callable[["VisionSpec", Load], nn.Module]
    source: str
    width: int
    image_size: int
    num_patches: int
    num_parameters: int
    license: str
    paper: str
    pooled_width: int | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    feature_layer: int = -2
    aliases: tuple[str, ...] = ()
    package: str = ""
    parts: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] | str = "all-linear"

    @property
    def fill(self) -> tuple[int, int, int]:
        """Color that pads a picture: the channel means, so that padding is zero after normalization (LLaVA's rule, `int(255 * mean)`)."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue


@runtime_checkable
class PixelStatistics(Protocol):
    """What normalization reads of a spec."""

    @property
    def image_size(self) -> int:
        """Side of a tile, in pixels."""
        ...

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means, of values in 0 to 1."""
        ...

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel deviations."""
        ...


class Normalize(nn.Module):
    """uint8 tiles to normalized floats, in fp32 whatever the type of the tower.

    Bit-equal to transformers' PIL image processors. Every constant is a tensor on the device of the pixels, 255 too: CUDA computes a division by a
    Python number as a product with its rounded reciprocal, which differs in the last bit for half of the 256 values.
    """

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, spec: PixelStatistics):
        """Keep the statistics and the tile size of a spec."""
        super().__init__()
        self.image_size = spec.image_size
        self.constants = {"scale": (255.0, 255.0, 255.0), "mean": spec.mean, "std": spec.std}
        for name, values in self.constants.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":
        """Follow the tower to another device; `.to(bfloat16)` must not round the constants, `.to_empty` must not lose them."""
        super()._apply(fn, recurse)
        for name, values in self.constants.items():
            device = getattr(self, name).device
            setattr(self, name, torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1))
        return self

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """`(pixels / 255 - mean) / std`.

        Raises:
            ConfigError: If the tiles are of another size than the backbone takes.
        """
        height, width = pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"The vision backbone takes tiles of {self.image_size}x{self.image_size} pixels, got {height}x{width}. Prepare the images with its image_size."
            )
        return (pixels.float() / self.scale - self.mean) / self.std


def position_of_layer(feature_layer: int, *, depth: int, source: str) -> int:
    """Index into the hidden states from 0 (the embeddings) to `depth` (the last layer); negative ones count from the end.

    Raises:
        ConfigError: If the tower has no such layer.
    """
    if not -depth - 1 <= feature_layer <= depth:
        raise ConfigError(f"feature_layer {feature_layer} is outside of the {depth} layers of {source}; use {-depth - 1} to {depth}.")
    return feature_layer % (depth + 1)


class TransformersVision(nn.Module):
    """A ViT of transformers as a vision backbone."""

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: VisionSpec,
        feature_layer: int | None,
        layers: str,
        pre_norm: str = "",
        num_prefix_tokens: int = 0,
        pools_class_token: bool = False,
        layer_arguments: Mapping[str, Any] | None = None,
    ):
        """Wrap a tower.

        Args:
            model: The transformers model, with `embeddings`.
            spec: Its spec.
            feature_layer: Layer whose output the connector sees, as an index into the hidden states: 0 the embeddings, -1 the last layer;
                None for the spec's own.
            layers: Path of the transformer layers in `model`. A path, not the modules: what wraps a layer later puts its own module there.
            pre_norm: Path of a norm between embeddings and layers, as CLIP has; empty for none.
            num_prefix_tokens: Tokens before the patches.
            pools_class_token: Pool the class token after the last norm, for models that have no pooled output of their own.
            layer_arguments: Keyword arguments that every layer call needs.

        Raises:
            ConfigError: If the tower has no such layer.
        """
        super().__init__()
        self.model: Any = model
        self.normalize = Normalize(spec)
        self.width, self.image_size, self.num_patches = spec.width, spec.image_size, spec.num_patches
        self.pooled_width = spec.pooled_width or spec.width
        self.layers, self.pre_norm, self.layer_arguments = layers, pre_norm, dict(layer_arguments or {})
        self.num_prefix_tokens, self._pools_class_token = num_prefix_tokens, pools_class_token
        feature_layer = spec.feature_layer if feature_layer is None else feature_layer
        self.num_layers_used = position_of_layer(feature_layer, depth=len(self.blocks()), source=spec.source)

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Patch features of the chosen layer; later layers are not run."""
        hidden = self.model.embeddings(self._normalized(pixels))
        if self.pre_norm:
            hidden = self.model.get_submodule(self.pre_norm)(hidden)
        for layer in self.blocks()[: self.num_layers_used]:
            hidden = layer(hidden, **self.layer_arguments)
        # contiguous: F.linear on a bf16 slice is some 60 times slower on CPU
        return hidden[:, self.num_prefix_tokens :].contiguous()

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """The tower's own pooled vector: the class token after the last norm (CLIP, DINOv2, ViT), or SigLIP's attention pooling."""
        output = self.model(self._normalized(pixels))
        return output.last_hidden_state[:, 0] if self._pools_class_token else output.pooler_output

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return tuple(self.model.get_submodule(self.layers))

    def _normalized(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        return self.normalize(pixels).to(next(self.model.parameters()).dtype)
