"""A model that answers as a folder with code of its own (`vlm/export/remote_code`): exact for every composition, and read without vlm.

transformers runs such code only with `trust_remote_code=True`; other libraries do not run it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.backbones.loading import check_complete, quiet
from vlm.backbones.vision.base import TransformersVision
from vlm.backbones.vision.efficientnet import EfficientNetLite0
from vlm.backbones.vision.fused import FusedVision
from vlm.backbones.vision.timm import TimmVision
from vlm.connectors.base import Standardize
from vlm.connectors.linear import Identity, Linear
from vlm.connectors.mlp import MLP
from vlm.connectors.pixel_shuffle import PixelShuffle
from vlm.errors import CheckpointError, ConfigError
from vlm.export.answers_parity import Foreign
from vlm.export.chat_jinja import SEPARATOR, as_jinja
from vlm.export.folder import exported_tokenizer, name_tokenizer_class, plain_config, write_generation_config, write_json, write_weights
from vlm.export.two_layers import activation_name
from vlm.models.vision_language import VisionLanguageModel

CODE = Path(__file__).parent / "remote_code"
STATISTICS = ("connector.mean", "connector.scale")  # fp32 whatever the type of the rest
MODEL, PROCESSOR, IMAGES = "modeling_vlm.VLMForConditionalGeneration", "processing_vlm.VLMProcessor", "image_processing_vlm.VLMImageProcessor"


def write_remote(model: VisionLanguageModel, folder: Path, dtype: torch.dtype) -> tuple[str, ...]:
    """Write code, config, weights, tokenizer, chat template and processor; returns what the user should know.

    Raises:
        ConfigError: If a part is not one of vlm's own.
    """
    towers, (connector, connector_weights) = towers_of(model.vision), describe_connector(model.connector, model.vision.width)
    config = {
        "architectures": ["VLMForConditionalGeneration"],
        "model_type": "vlm",
        "auto_map": {"AutoConfig": "configuration_vlm.VLMConfig", "AutoModel": MODEL, "AutoModelForImageTextToText": MODEL},
        "dtype": str(dtype).removeprefix("torch."),
        "image_token_id": model.language.image_token_id,
        "tie_word_embeddings": bool(model.language.model.config.tie_word_embeddings),
        "towers": [describe_tower(tower) for tower in towers],
        "connector": connector,
        "text_config": plain_config(model.language.model.config),
    }
    for path in sorted(CODE.glob("*_vlm.py")):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    write_json(folder / "config.json", config)
    weights = _weights(model, towers, connector_weights)
    write_weights(folder, {name: tensor if name in STATISTICS else tensor.to(dtype) for name, tensor in weights.items()})
    write_generation_config(folder, model.language)
    _write_processor(model, folder)
    return (f"needs transformers 5 and trust_remote_code=True{', and timm' if any(isinstance(tower, TimmVision) for tower in towers) else ''}",)


def towers_of(vision: Any) -> list[Any]:
    """The towers of a vision backbone."""
    return list(vision.towers) if isinstance(vision, FusedVision) else [vision]


def describe_tower(tower: Any) -> dict[str, Any]:
    """What the code needs to build a tower.

    Raises:
        ConfigError: If it is not one of vlm's.
    """
    statistics = {name: list(tower.normalize.constants[name]) for name in ("mean", "std")} if hasattr(tower, "normalize") else {}
    if isinstance(tower, TransformersVision):
        return {"kind": "transformers", "config": plain_config(tower.model.config), **_reading(tower), **statistics}
    if isinstance(tower, TimmVision):
        published: Any = tower.model.pretrained_cfg
        tag = f".{published['tag']}" if published.get("tag") else ""
        return {"kind": "timm", "name": f"{published['architecture']}{tag}", "position": tower.position, **statistics}
    if isinstance(tower, EfficientNetLite0):
        return {"kind": "efficientnet-lite0", "position": tower.position, **statistics}
    raise ConfigError(f"The vision backbone is of the class {type(tower).__name__}, which `--with-code` has no code for: it knows vlm's own parts.")


def _reading(tower: TransformersVision) -> dict[str, Any]:
    """How the patches are read off a tower."""
    first: Any = tower.blocks()[0]
    replaced = getattr(tower.model.config, "hidden_act", "") == "quick_gelu" and type(first.mlp.activation_fn) is nn.GELU  # clip_with_gelu
    return {
        "layers": tower.layers,
        "pre_norm": tower.pre_norm,
        "layer_arguments": tower.layer_arguments,
        "num_layers_used": tower.num_layers_used,
        "num_prefix_tokens": tower.num_prefix_tokens,
        "activation": "gelu" if replaced else "",
    }


def describe_connector(connector: Any, in_width: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the code needs to build a connector, and its tensors by the names there.

    Raises:
        ConfigError: If it is not one of vlm's.
    """
    shuffle = connector.scale if isinstance(connector, PixelShuffle) else 1
    inner: Any = connector.mlp if isinstance(connector, PixelShuffle) else connector
    if not isinstance(inner, Identity | Linear | MLP):
        raise ConfigError(f"The connector is of the class {type(connector).__name__}, which `--with-code` has no code for: it knows vlm's own parts.")
    body = list(inner.body) if isinstance(inner, MLP) else []
    layers = [module for module in body if isinstance(module, nn.Linear)] + ([] if isinstance(inner, Identity) else [inner.readout])
    norm = None if isinstance(inner, Identity) else inner.standardize
    weights = {f"layers.{i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in layer.state_dict().items()}
    if isinstance(norm, Standardize):
        weights |= {"mean": norm.mean, "scale": norm.scale}
    widths = [in_width * shuffle**2, *(layer.out_features for layer in layers)]
    activation = activation_name(body[-1]) if body else "gelu"
    return {"shuffle": shuffle, "standardize": isinstance(norm, Standardize), "widths": widths, "activation": activation}, weights


def _weights(model: VisionLanguageModel, towers: list[Any], connector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for i, tower in enumerate(towers):
        weights |= {f"vision.towers.{i}.{name}": tensor for name, tensor in tower.state_dict().items()}
    weights |= {f"connector.{name}": tensor for name, tensor in connector.items()}
    weights |= {f"language_model.{name}": tensor for name, tensor in model.language.model.state_dict().items()}
    if model.language.model.config.tie_word_embeddings:
        weights.pop("language_model.lm_head.weight", None)
    return {name: tensor.detach().contiguous() for name, tensor in weights.items()}


def _write_processor(model: VisionLanguageModel, folder: Path) -> None:
    template, policy = as_jinja(model.template, separator=SEPARATOR), model.image_policy
    exported_tokenizer(model.language, template).save_pretrained(folder)
    name_tokenizer_class(folder)
    places = {"AutoProcessor": PROCESSOR, "AutoImageProcessor": IMAGES}
    settings = {name: getattr(policy, name) for name in ("size", "mode", "resample", "short_side", "half_pixel")} | {"fill": list(policy.fill)}
    images = {"image_processor_type": IMAGES.split(".")[1], "processor_class": PROCESSOR.split(".")[1], "auto_map": places, **settings}
    write_json(folder / "preprocessor_config.json", images)
    whole = {"processor_class": PROCESSOR.split(".")[1], "auto_map": places, "tokens_per_image": model.tokens_per_tile}
    write_json(folder / "processor_config.json", whole | {"separator": _separator(model), "image_place": model.template.image_place})


def _separator(model: VisionLanguageModel) -> str:
    """What stands between pieces of a prompt that are tokenized by themselves; empty where prompts are tokenized whole."""
    return "" if model.template.tokenized == "whole" else SEPARATOR


def load_remote(model: VisionLanguageModel, folder: Path) -> Foreign:
    """The folder as a user of transformers loads it, in fp32.

    Raises:
        CheckpointError: If a tensor is missing or left over.
    """
    import transformers

    options: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    with quiet(True):
        loaded, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, **options)
    check_complete(info, folder)
    if info["unexpected_keys"]:
        raise CheckpointError(
            f"The code in {folder} does not know {len(info['unexpected_keys'])} tensors, among them {sorted(info['unexpected_keys'])[0]}."
        )
    return Foreign(
        loaded.eval(),
        processor,
        pixels=lambda tiles: tiles,
        separator=_separator(model),
        processors={"of the folder": lambda image: processor.image_processor(image, return_tensors="pt")["pixel_values"]},
    )
