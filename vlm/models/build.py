"""Names to modules: a config becomes a composition of specs, checked before any download, and then a model.

The only place that joins registries of parts; knows no data and no training beyond which parts will be trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlm.backbones.fingerprint import fingerprint
from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, LanguageSpec, build_language
from vlm.backbones.language.chat_templates import find_template
from vlm.backbones.loading import Load
from vlm.backbones.lora import LoRAOptions, add_lora, is_lora, linear_layers
from vlm.backbones.quantization import check_installed, quantize
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.vision.layers_in_use import layers_in_use
from vlm.conf.schema import LoRAConfig, VisionLanguageConfig
from vlm.connectors import CONNECTORS
from vlm.connectors.base import ConnectorSpec
from vlm.errors import ConfigError
from vlm.messages import ChatTemplate
from vlm.models.vision_language import PARTS, VisionLanguageModel
from vlm.types import ImagePolicy

FROZEN_DTYPE = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16}
TRAINED_DTYPE = {"fp32": torch.float32, "bf16-mixed": torch.float32, "bf16": torch.bfloat16}
ADAPTABLE: Mapping[str, Callable[[Any], list[str]]] = {"vision": layers_in_use, "language": linear_layers}  # towers, and which of their layers


@dataclass(frozen=True)
class Composition:
    """A config with its names resolved; everything in it is known before any download."""

    vision: VisionSpec
    connector: ConnectorSpec
    language: LanguageSpec
    template: ChatTemplate | None
    tokens_per_tile: int
    image_policy: ImagePolicy
    lora: Mapping[str, LoRAOptions]  # of the towers that have an adapter


def resolve(config: VisionLanguageConfig) -> Composition:
    """Look up every name of a config and check that the parts fit.

    Raises:
        UnknownNameError: If a name is unknown; the nearest ones are given.
        ConfigError: If the connector cannot take the backbone's patches.
    """
    vision, connector, language = VISION[config.vision], CONNECTORS[config.connector], LANGUAGE[config.language]
    return Composition(
        vision=vision,
        connector=connector,
        language=language,
        template=find_template(config.template) if config.template else language.template,
        tokens_per_tile=connector.num_tokens(vision.num_patches),
        image_policy=ImagePolicy(size=vision.image_size, resample=vision.resample, fill=vision.fill, **_cut(config.resize)),
        lora={
            tower: _lora_options(lora, spec.lora_targets)
            for tower, lora, spec in (("vision", config.lora.vision, vision), ("language", config.lora.language, language))
            if lora.rank
        },
    )


def _cut(resize: str) -> dict[str, Any]:
    """Fields of `ImagePolicy` that a way to make pictures square stands for."""
    return {"mode": "crop", "half_pixel": "even"} if resize == "crop-even" else {"mode": resize}


def _lora_options(config: LoRAConfig, family: tuple[str, ...] | str) -> LoRAOptions:
    return LoRAOptions(**(vars(config) | {"targets": family if config.targets == "family" else config.targets}))


def build(config: VisionLanguageConfig, *, precision: str, trained: tuple[str, ...] = (), seed: int = 0) -> VisionLanguageModel:
    """Load the towers, make the connector, and freeze what is not trained.

    Args:
        config: The composition.
        precision: fp32, bf16-mixed or bf16: the type of the weights, trained parts apart (see TrainConfig.precision).
        trained: Parts that will be trained: vision, connector, language.
        seed: Seed of the connector's and the adapter's random start.

    Raises:
        UnknownNameError: If a name is unknown.
        ConfigError: If parts do not fit, or an adapter is asked for but its tower is frozen.
        CheckpointError: If weights are missing or are not what their name says.
        MissingPackageError: If quantized weights are asked for and bitsandbytes is not installed.
    """
    parts = resolve(config)
    _check_adapters(parts.lora, trained)
    dtypes = _dtypes(parts, trained, precision)
    vision: Any = parts.vision.build(parts.vision, Load(config.vision_source or parts.vision.source, dtypes["vision"], config.feature_layer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = build_language(
            parts.language,
            Load(config.language_source or parts.language.source, dtypes["language"]),
            template=parts.template,
        )
        quantized = _adapt("language", language, parts.lora)
        connector = parts.connector.build(vision.width, language.width).to(dtypes["connector"])
        quantized |= _adapt("vision", vision, parts.lora)
    return _join(parts, vision, connector, language, trained, quantized)


def skeleton(config: VisionLanguageConfig, *, precision: str, trained: tuple[str, ...] = ()) -> VisionLanguageModel:
    """The model that `build` would make, at full size on the meta device: for counting, without weights, tokenizer or download. Nothing is quantized.

    Args:
        config: The composition.
        precision: As of `build`.
        trained: As of `build`.

    Raises:
        UnknownNameError: If a name is unknown.
        ConfigError: If parts do not fit, or an adapter is asked for but its tower is frozen.
    """
    parts = resolve(config)
    parts = replace(parts, lora={tower: replace(options, quantize="none") for tower, options in parts.lora.items()})
    _check_adapters(parts.lora, trained)
    dtypes = _dtypes(parts, trained, precision)
    with torch.device("meta"):
        vision: Any = parts.vision.build(parts.vision, Load(None, dtypes["vision"], config.feature_layer))
        decoder = parts.language.build(parts.language, Load(None, dtypes["language"]))
        language = HFCausalLM(decoder, tokenizer=None, template=None, max_length=parts.language.max_length)
        connector = parts.connector.build(vision.width, language.width).to(dtypes["connector"])
        for part, tower in (("language", language), ("vision", vision)):
            _adapt(part, tower, parts.lora)
    return _join(parts, vision, connector, language, trained, {})


def _join(
    parts: Composition, vision: Any, connector: nn.Module, language: HFCausalLM, trained: tuple[str, ...], quantized: dict[str, str]
) -> VisionLanguageModel:
    tokens_per_tile = parts.connector.num_tokens(vision.num_patches)  # of a CNN, another feature layer has another number of patches
    model = VisionLanguageModel(vision, connector, language, tokens_per_tile=tokens_per_tile, image_policy=parts.image_policy)
    model.adapters, model.quantized = dict(parts.lora), quantized
    freeze(model, trained)
    return model.eval()


def _dtypes(parts: Composition, trained: tuple[str, ...], precision: str) -> dict[str, torch.dtype]:
    """Type of each part's own weights; a tower under an adapter is frozen, a connector is as if it were trained."""
    whole = {"vision": "vision" in trained, "language": "language" in trained, "connector": True}
    return {part: (TRAINED_DTYPE if is_whole and part not in parts.lora else FROZEN_DTYPE)[precision] for part, is_whole in whole.items()}


def _check_adapters(lora: Mapping[str, LoRAOptions], trained: tuple[str, ...]) -> None:
    for tower, options in lora.items():
        if trained and tower not in trained:
            raise ConfigError(
                f"--model.lora.{tower}.rank is set, but --stage.lr.{tower} is not: the adapter would never change. Set a rate, or rank 0."
            )
        if options.quantize != "none":
            check_installed(options.quantize, f"--model.lora.{tower}.quantize")


def _adapt(part: str, tower: Any, lora: Mapping[str, LoRAOptions]) -> dict[str, str]:
    """Quantize a tower if its options say so, and add its adapter if it has one; returns the fingerprint that a quantized one had before."""
    if part not in lora:
        return {}
    model, options = adaptable(part, tower), lora[part]
    layers, before = ADAPTABLE[part](model), {}
    if options.quantize != "none":
        before = {part: fingerprint(tower)}
        quantize(model, options.quantize, layers)
    add_lora(model, options, among=layers)
    return before


def adaptable(part: str, tower: Any) -> Any:
    """The module that adapters are added to: of a language model the one of transformers, so that regular expressions see its names."""
    return tower.model if part == "language" else tower


def freeze(model: VisionLanguageModel, trained: tuple[str, ...]) -> None:
    """Make the named parts trainable and all others not; of a tower with an adapter, the adapter alone."""
    for part in PARTS:
        for name, weight in getattr(model, part).named_parameters():
            weight.requires_grad_(part in trained and (is_lora(name) or part not in model.adapters))
    model.altered |= {part for part in trained if part not in model.adapters}
