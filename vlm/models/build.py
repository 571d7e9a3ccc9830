"""Names to modules: a config becomes a composition of specs, checked before any download, and then a model.

The only place that joins registries of parts; knows no data and no training beyond which parts will be trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.backbones.language import LANGUAGE
from vlm.backbones.language.base import HFCausalLM, LanguageSpec, build_language
from vlm.backbones.language.chat_templates import find_template
from vlm.backbones.language.lora import LoRAOptions, is_lora
from vlm.backbones.loading import Load
from vlm.backbones.vision import VISION
from vlm.backbones.vision.base import VisionSpec
from vlm.conf.schema import LoRAConfig, VisionLanguageConfig
from vlm.connectors import CONNECTORS
from vlm.connectors.base import ConnectorSpec
from vlm.errors import ConfigError
from vlm.messages import ChatTemplate
from vlm.models.vision_language import PARTS, VisionLanguageModel
from vlm.types import ImagePolicy

FROZEN_DTYPE = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16}
TRAINED_DTYPE = {"fp32": torch.float32, "bf16-mixed": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Composition:
    """A config with its names resolved; everything in it is known before any download."""

    vision: VisionSpec
    connector: ConnectorSpec
    language: LanguageSpec
    template: ChatTemplate | None
    tokens_per_tile: int
    image_policy: ImagePolicy
    lora: LoRAOptions | None


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
        image_policy=ImagePolicy(size=vision.image_size, mode=config.resize, resample=vision.resample, fill=vision.fill),
        lora=_lora_options(config.lora.language, language),
    )


def _lora_options(config: LoRAConfig, spec: LanguageSpec) -> LoRAOptions | None:
    if config.rank == 0:
        return None
    targets = spec.lora_targets if config.targets == "family" else config.targets
    return LoRAOptions(rank=config.rank, alpha=config.alpha, dropout=config.dropout, targets=targets)


def build(config: VisionLanguageConfig, *, precision: str, trained: tuple[str, ...] = (), seed: int = 0) -> VisionLanguageModel:
    """Load the towers, make the connector, and freeze what is not trained.

    Args:
        config: The composition.
        precision: fp32, bf16-mixed or bf16: the type of the weights, trained parts apart (see TrainConfig.precision).
        trained: Parts that will be trained: vision, connector, language.
        seed: Seed of the connector's and the adapter's random start.

    Raises:
        UnknownNameError: If a name is unknown.
        ConfigError: If parts do not fit, or an adapter is asked for but the language model is frozen.
        CheckpointError: If weights are missing or are not what their name says.
    """
    parts = resolve(config)
    _refuse_idle_adapter(parts, trained)
    dtypes = _dtypes(parts, trained, precision)
    vision: Any = parts.vision.build(parts.vision, Load(config.vision_source or parts.vision.source, dtypes["vision"], config.feature_layer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = build_language(
            parts.language,
            Load(config.language_source or parts.language.source, dtypes["language"]),
            template=parts.template,
            lora=parts.lora,
        )
        connector = parts.connector.build(vision.width, language.width).to(dtypes["connector"])
    return _join(parts, vision, connector, language, trained)


def skeleton(config: VisionLanguageConfig, *, precision: str, trained: tuple[str, ...] = ()) -> VisionLanguageModel:
    """The model that `build` would make, at full size on the meta device: for counting, without weights, tokenizer or download.

    Args:
        config: The composition.
        precision: As of `build`.
        trained: As of `build`.

    Raises:
        UnknownNameError: If a name is unknown.
        ConfigError: If parts do not fit, or an adapter is asked for but the language model is frozen.
    """
    parts = resolve(config)
    _refuse_idle_adapter(parts, trained)
    dtypes = _dtypes(parts, trained, precision)
    with torch.device("meta"):
        vision: Any = parts.vision.build(parts.vision, Load(None, dtypes["vision"], config.feature_layer))
        decoder = parts.language.build(parts.language, Load(None, dtypes["language"]))
        language = HFCausalLM(decoder, tokenizer=None, template=None, max_length=parts.language.max_length, lora=parts.lora)
        connector = parts.connector.build(vision.width, language.width).to(dtypes["connector"])
    return _join(parts, vision, connector, language, trained)


def _refuse_idle_adapter(parts: Composition, trained: tuple[str, ...]) -> None:
    if parts.lora is not None and trained and "language" not in trained:
        raise ConfigError("--model.lora.language.rank is set, but --stage.lr.language is not: the adapter would never change. Set a rate, or rank 0.")


def _join(parts: Composition, vision: Any, connector: nn.Module, language: HFCausalLM, trained: tuple[str, ...]) -> VisionLanguageModel:
    tokens_per_tile = parts.connector.num_tokens(vision.num_patches)  # of a CNN, another feature layer has another number of patches
    model = VisionLanguageModel(vision, connector, language, tokens_per_tile=tokens_per_tile, image_policy=parts.image_policy)
    freeze(model, trained, has_adapter=parts.lora is not None)
    return model.eval()


def _dtypes(parts: Composition, trained: tuple[str, ...], precision: str) -> dict[str, torch.dtype]:
    """Type of each part's own weights; a language model under an adapter is frozen, a connector is as if it were trained."""
    whole = {"vision": "vision" in trained, "language": "language" in trained and parts.lora is None, "connector": True}
    return {part: (TRAINED_DTYPE if is_whole else FROZEN_DTYPE)[precision] for part, is_whole in whole.items()}


def freeze(model: VisionLanguageModel, trained: tuple[str, ...], *, has_adapter: bool) -> None:
    """Make the named parts trainable and all others not; of a language model with an adapter, the adapter alone."""
    for part in PARTS:
        for name, weight in getattr(model, part).named_parameters():
            weight.requires_grad_(part in trained and (is_lora(name) or not (part == "language" and has_adapter)))
    model.altered |= {part for part in trained if not (part == "language" and has_adapter)}
