"""What a vision backbone is before any download (`VisionSpec`), and the wrapper of the transformers towers. Knows no single family.

Patch features follow the LLaVA and Prismatic lineage: the output of an inner layer (the last but one by default), without the final norm and
without prefix tokens (class token, registers).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.loading import Load, check_architecture, from_pretrained
from vlm.errors import CheckpointError, ConfigError

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's published preprocessing
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP and the Google ViTs


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
        num_parameters: Parameters of the tower as published.
        mean: Channel means that are subtracted, of values in 0 to 1.
        std: Channel deviations that are divided by.
        resample: PIL filter of the resize in the original preprocessing.
        feature_layer: Default layer of the patch features; see `Load`.
        license: Licence of the weights.
        paper: Where the model is described.
        aliases: Other names, among them Prismatic's.
        package: Optional pip package that `build` needs, or empty.
        parts: Names of the backbones that a fused one joins.
    """

    build: Callable[["VisionSpec", Load], nn.Module]
    source: str
    width: int
    image_size: int
    num_patches: int
    num_parameters: int
    license: str
    paper: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    feature_layer: int = -2
    aliases: tuple[str, ...] = ()
    package: str = ""
    parts: tuple[str, ...] = ()

    @property
    def fill(self) -> tuple[int, int, int]:
        """Color that pads a picture: the channel means, so that padding is zero after normalization (LLaVA's rule, `int(255 * mean)`)."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue


class Normalize(nn.Module):
    """uint8 pixels to normalized floats, computed in fp32 whatever the type of the tower."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        """Keep the channel statistics, given for values in 0 to 1."""
        super().__init__()
        self.statistics = tuple(mean), tuple(std)

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """`(pixels / 255 - mean) / std`, with the roundings of transformers' PIL image processors."""
        mean, std = (torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for values in self.statistics)
        return (pixels.float() * (1 / 255) - mean) / std


class TransformersVision(nn.Module):
    """A ViT of transformers as a vision backbone."""

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: VisionSpec,
        feature_layer: int,
        layers: Sequence[nn.Module],
        num_prefix_tokens: int = 0,
        pre_norm: nn.Module | None = None,
        layer_arguments: Mapping[str, Any] | None = None,
    ):
        """Wrap a tower.

        Args:
            model: The transformers model, with `embeddings`.
            spec: Its spec.
            feature_layer: Layer whose output the connector sees, as an index into the hidden states: 0 the embeddings, -1 the last layer.
            layers: The transformer layers of `model`, in order.
            num_prefix_tokens: Tokens before the patches.
            pre_norm: A norm of `model` between embeddings and layers, as CLIP has.
            layer_arguments: Keyword arguments that every layer call needs.

        Raises:
            ConfigError: If the tower has no such layer.
        """
        super().__init__()
        depth = len(layers)
        if not -depth - 1 <= feature_layer <= depth:
            raise ConfigError(f"feature_layer {feature_layer} is outside of the {depth} layers of the vision backbone from {spec.source}.")
        self.model = model
        self.normalize = Normalize(spec.mean, spec.std)
        self.width, self.image_size, self.num_patches = spec.width, spec.image_size, spec.num_patches
        self._num_layers_used = feature_layer if feature_layer >= 0 else depth + 1 + feature_layer
        self._layers, self._pre_norm = tuple(layers), (pre_norm,)  # tuples: the modules are registered once, under `model`
        self._num_prefix_tokens, self._layer_arguments = num_prefix_tokens, dict(layer_arguments or {})

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Patch features of the chosen layer; later layers are not run."""
        hidden = self._embed(pixels)
        for layer in self._layers[: self._num_layers_used]:
            hidden = layer(hidden, **self._layer_arguments)
        return hidden[:, self._num_prefix_tokens :]

    def _embed(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        weight = next(self.model.parameters())
        hidden = self.model.embeddings(self.normalize(pixels).to(weight.dtype))
        (pre_norm,) = self._pre_norm
        return hidden if pre_norm is None else pre_norm(hidden)

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """The tower's own pooled vector: CLIP's and DINOv2's class token after the last norm, SigLIP's attention pooling."""
        weight = next(self.model.parameters())
        return self.model(self.normalize(pixels).to(weight.dtype)).pooler_output

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return self._layers


def load_transformers(class_name: str, config_name: str, spec: VisionSpec, load: Load) -> nn.Module:
    """A transformers vision model: random from the spec's architecture, or with weights whose config agrees with it.

    Args:
        class_name: Model class in transformers.
        config_name: Its config class.
        spec: The spec.
        load: Source and type of the weights.

    Raises:
        CheckpointError: If the weights cannot be found, miss a tensor, or are of another size than the spec says.
    """
    import transformers

    config = getattr(transformers, config_name)(**spec.architecture)
    model_class = getattr(transformers, class_name)
    if load.source is None:
        return model_class._from_config(config, dtype=load.dtype, attn_implementation="sdpa")
    model, info = from_pretrained(model_class, load.source, dtype=load.dtype)
    check_architecture(model.config, spec.architecture, load.source)
    # A vision model taken out of a two-tower checkpoint leaves the text tower's tensors unused; a missing tensor would be random.
    if info["missing_keys"] or info["mismatched_keys"]:
        raise CheckpointError(f"{load.source} lacks weights of {class_name}: {sorted(map(str, [*info['missing_keys'], *info['mismatched_keys']]))[:5]}.")
    return model
