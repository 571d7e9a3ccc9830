"""A vision-language model that was composed and trained with vlm: patch features of vision towers, through a connector, in the places of image tokens.

`pixel_values` are uint8 RGB tiles [N, 3, H, W], as `VLMProcessor` makes them: every tower normalizes them itself.
"""

import importlib
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .configuration_vlm import VLMConfig
from .efficientnet_vlm import EfficientNetLite0

ACTIVATIONS = {"gelu": nn.GELU, "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"), "relu": nn.ReLU, "silu": nn.SiLU}


class TransformersTower(nn.Module):
    """Patches of an inner layer of a vision transformer of transformers."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Build the whole tower."""
        super().__init__()
        arguments = {"add_pooling_layer": False} if options["config"]["model_type"] == "vit" else {}
        self.model: Any = AutoModel.from_config(AutoConfig.for_model(**options["config"]), **arguments)
        self.options = options
        if options["activation"]:
            for layer in self.model.get_submodule(options["layers"]):
                layer.mlp.activation_fn = ACTIVATIONS[options["activation"]]()

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, patches, width]."""
        hidden = self.model.embeddings(images)
        if self.options["pre_norm"]:
            hidden = self.model.get_submodule(self.options["pre_norm"])(hidden)
        for layer in self.model.get_submodule(self.options["layers"])[: self.options["num_layers_used"]]:
            hidden = layer(hidden, **self.options["layer_arguments"])
        return hidden[:, self.options["num_prefix_tokens"] :].contiguous()


class TimmTower(nn.Module):
    """Patches of an inner block, or of a stage, of a timm model."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Build the whole model, without its classifier."""
        super().__init__()
        self.model: Any = importlib.import_module("timm").create_model(options["name"], pretrained=False, num_classes=0)
        self.position = options["position"]

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, patches, width]."""
        (features,) = self.model.forward_intermediates(
            images, indices=[self.position - 1], norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return features.flatten(2).transpose(1, 2).contiguous()


TOWERS = {"transformers": TransformersTower, "timm": TimmTower, "efficientnet-lite0": EfficientNetLite0}


class Vision(nn.Module):
    """Towers side by side, each with its own normalization."""

    def __init__(self, towers: list[dict[str, Any]]) -> None:
        """Build every tower."""
        super().__init__()
        self.towers = nn.ModuleList(TOWERS[options["kind"]](options) for options in towers)
        self.statistics = [(options["mean"], options["std"]) for options in towers]

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in uint8 to [N, patches, width]: patch i of every tower on the channel axis."""
        return torch.cat([tower(self._normalized(pixels, *s)) for tower, s in zip(self.towers, self.statistics, strict=True)], dim=-1)

    def _normalized(self, pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
        # in fp32, and by tensors: CUDA divides by a Python number as by its rounded reciprocal
        scale, center, spread = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for v in ([255.0] * 3, mean, std))
        return ((pixels.float() / scale - center) / spread).to(next(self.parameters()).dtype)


class Connector(nn.Module):
    """Patch features to embeddings: squares of patches joined, fixed statistics, linear layers."""

    def __init__(self, shuffle: int, standardize: bool, widths: list[int], activation: str) -> None:
        """Make the layers."""
        super().__init__()
        self.shuffle, self.standardize = shuffle, standardize
        if standardize:
            self.register_buffer("mean", torch.zeros(widths[0]))
            self.register_buffer("scale", torch.ones(widths[0]))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, features: Tensor) -> Tensor:
        """[N, patches, width] to [N, tokens, width of the language model]."""
        if self.shuffle > 1:
            features = self._joined(features)
        if self.standardize:
            features = ((features - self.mean) * self.scale).to(features.dtype)
        for i, layer in enumerate(self.layers):
            features = layer(self.activation(features) if i else features)
        return features

    def _joined(self, features: Tensor) -> Tensor:
        tiles, patches, width = features.shape
        side, scale = math.isqrt(patches), self.shuffle
        blocks = features.view(tiles, side // scale, scale, side // scale, scale, width)
        return blocks.transpose(2, 3).reshape(tiles, patches // scale**2, scale**2 * width)


class VLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Image embeddings in the places of the image tokens of a causal language model."""

    config_class = VLMConfig
    base_model_prefix = ""
    input_modalities: Any = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: Any = ("connector.mean", "connector.scale")

    def __init__(self, config: VLMConfig) -> None:
        """Build every part."""
        super().__init__(config)
        self.vision = Vision(config.towers)
        self.connector = Connector(**config.connector)
        self.language_model: Any = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, H, W] in uint8 to [N, tokens, width of the language model]."""
        return self.connector(self.vision(pixel_values))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Embeddings of text and pictures; image tokens need no row in the table.

        Raises:
            ValueError: If image tokens and pictures disagree.
        """
        table: Any = self.get_input_embeddings()
        embeds = table(torch.where(input_ids < table.weight.shape[0], input_ids, 0))
        is_image = input_ids == self.config.image_token_id
        if pixel_values is None or not bool(is_image.any()):
            return embeds
        images = self.get_image_features(pixel_values)
        if int(is_image.sum()) != images.shape[0] * images.shape[1]:
            raise ValueError(f"{int(is_image.sum())} image tokens for {images.shape[0]} pictures of {images.shape[1]} embeddings each")
        return embeds.masked_scatter(is_image.unsqueeze(-1), images.to(embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model's output; `labels` give a loss."""
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed(input_ids, pixel_values)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
