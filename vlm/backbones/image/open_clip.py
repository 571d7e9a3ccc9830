"""Image towers of open_clip (Ilharco et al. 2021, doi:10.5281/zenodo.5143773) by their names there: `open-clip:ViT-B-32:laion2b_s34b_b79k-image`.

What stands behind the second colon is a tag of published weights or a file; without it the weights are random. The ending `-image` may be left out.
Vectors equal `model.encode_image` without normalization, pixels those of open_clip's evaluation transform. One thing is done that open_clip only warns
of: weights whose tag says quick GELU get it, as `ViT-B-32:openai` does.
"""

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from vlm.backbones.image.base import ImageSpec, PooledImage, Scale
from vlm.backbones.loading import Load, require
from vlm.backbones.torchvision_shim import prepare_torchvision
from vlm.backbones.vision.base import Normalize
from vlm.errors import WEIGHTS_REMEDY, CheckpointError, ConfigError, UnknownNameError
from vlm.types import ImagePolicy, ResizeMode

MODES: dict[str, ResizeMode] = {"shortest": "crop", "squash": "squash"}  # open_clip's word for the resize, and ours
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")  # in a folder
SMALL_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}  # stands for a text half that nobody needs
BLOCKS = ("transformer.resblocks", "trunk.blocks", "trunk.stages")  # where towers have their layers


class OpenClipTower(nn.Module):
    """The image half of an open_clip model, from pixels on."""

    def __init__(self, visual: nn.Module, spec: ImageSpec):
        """Wrap it.

        Args:
            visual: The image half.
            spec: Its spec.
        """
        super().__init__()
        self.visual, self.normalize = visual, Normalize(spec)

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """The projected vectors."""
        vectors = self.visual(self.normalize(pixels).to(next(self.parameters()).dtype))
        return vectors[0] if isinstance(vectors, tuple) else vectors  # CoCa gives its tokens as well

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the tower; of a ResNet its stages."""
        for path in BLOCKS:
            if (layers := dict(self.visual.named_modules()).get(path)) is not None:
                return tuple(layers.children())
        return tuple(module for module in self.visual.children() if any(True for _ in module.parameters()))


def open_clip_image(spec: ImageSpec, load: Load) -> PooledImage:
    """The image half with published weights (`Load.source` is a tag), those of a file or folder, or random ones.

    Raises:
        CheckpointError: If the weights cannot be found or do not fit.
        MissingPackageError: If open_clip is not installed.
    """
    return PooledImage(spec, OpenClipTower(_model(spec, load).visual.to(load.dtype), spec))


def open_clip_scale(spec: ImageSpec, load: Load) -> Scale:
    """Scale and bias of the loaded model."""
    model = _model(spec, load)
    return math.exp(model.logit_scale.item()), 0.0 if model.logit_bias is None else model.logit_bias.item()


def _model(spec: ImageSpec, load: Load) -> Any:
    name = spec.architecture["name"]
    open_clip = _open_clip(name)
    options: dict[str, Any] = {"force_quick_gelu": spec.architecture["quick_gelu"], "pretrained_text": False}
    # the default device: open_clip would move a model that was built on the meta device
    options |= {"text_cfg": SMALL_TEXT, "device": torch.get_default_device()} if load.source is None else {"pretrained": _weights(load.source)}
    try:
        with without_logs():
            return open_clip.create_model(name, **options)
    except (OSError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:  # RuntimeError: no such weights, or of another model
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"Weights {str(load.source)!r} of open-clip:{name} could not be loaded ({said}). {WEIGHTS_REMEDY}") from error


def _weights(source: str | Path) -> str:
    """A tag or a file; of a folder, the file that open_clip writes there."""
    folder = Path(source)
    return str(next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), source))


def open_clip_spec(name: str) -> ImageSpec:
    """The spec of any open_clip image tower: `<model>`, `<model>:<tag of weights>` or `<model>:<file>`, with `-image` behind it or not.

    Raises:
        UnknownNameError: If open_clip has no such model, or the model no such weights and there is no such file.
        ConfigError: If the model does not take square pictures, or pads them.
        MissingPackageError: If open_clip is not installed.
    """
    model, _, pretrained = name.removesuffix("-image").partition(":")
    open_clip = _open_clip(model)
    config = open_clip.get_model_config(model)
    if config is None:
        raise UnknownNameError("open_clip model", model, open_clip.list_models())
    published = open_clip.get_pretrained_cfg(model, pretrained)
    if pretrained and not published and not Path(pretrained).exists():
        raise UnknownNameError(f"file, nor weights of the open_clip model {model},", pretrained, open_clip.list_pretrained_tags_by_model(model))
    visual = _skeleton(model)
    preprocess = visual.preprocess_cfg | {key: value for key, value in published.items() if value is not None}
    scale = math.exp(config.get("init_logit_scale") or math.log(1 / 0.07)), float(config.get("init_logit_bias") or 0.0)
    return ImageSpec(
        build=open_clip_image,
        source=pretrained or None,
        width=config["embed_dim"],
        image_policy=_policy(name, visual.image_size, preprocess),
        mean=_three(preprocess["mean"]),
        std=_three(preprocess["std"]),
        num_parameters=sum(parameter.numel() for parameter in visual.parameters()),
        pooling="open_clip's encode_image",
        architecture={"name": model, "quick_gelu": bool(published.get("quick_gelu") or config.get("quick_gelu"))},
        initial_scale=scale,
        read_scale=open_clip_scale,
        license="see the model's page",
        paper="doi:10.5281/zenodo.5143773",
        package="open-clip-torch",
    )


def _policy(name: str, image_size: Any, preprocess: dict[str, Any]) -> ImagePolicy:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width or preprocess["resize_mode"] not in MODES:
        raise ConfigError(
            f"open-clip:{name} resizes pictures to {height}x{width} pixels, mode {preprocess['resize_mode']!r}; "
            f"only square ones by {' or '.join(MODES)} are supported."
        )
    resample = "bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic"  # open_clip's rule for evaluation
    return ImagePolicy(size=height, mode=MODES[preprocess["resize_mode"]], resample=resample, half_pixel="even")


def _three(values: Any) -> tuple[float, float, float]:
    """One value for each channel."""
    red, green, blue = (values,) * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)


@functools.cache
def _skeleton(name: str) -> Any:
    """The image half without memory, with open_clip's preprocessing of models without a tag."""
    with torch.device("meta"), without_logs():
        return _open_clip(name).create_model(name, device="meta", text_cfg=SMALL_TEXT, pretrained_text=False).visual


@contextmanager
def without_logs() -> Iterator[None]:
    """Mute open_clip, which tells the root logger, and by that sets it up, that random models are random; its failures are exceptions as well."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addHandler(handler)
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
        root.removeHandler(handler)


def _open_clip(name: str) -> Any:
    require("open_clip", f"The image encoder open-clip:{name}", extra="openclip")
    prepare_torchvision()
    import open_clip

    return open_clip


OPEN_SPECS = {"open-clip:<model>:<weights>-image": open_clip_spec}
