"""Text towers of open_clip (Ilharco et al. 2021, doi:10.5281/zenodo.5143773) by their names there: `open-clip:ViT-B-32:laion2b_s34b_b79k-text`.

What stands behind the second colon is a tag of published weights or a file; without it the weights are random.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm.backbones.image.open_clip import without_logs
from vlm.backbones.loading import Load, require
from vlm.backbones.text.base import PaddedTextEncoder, TextSpec
from vlm.errors import WEIGHTS_REMEDY, CheckpointError, UnknownNameError


class OpenClipTower(nn.Module):
    """The text half of an open_clip model: token ids to vectors of the joint space."""

    def __init__(self, model: Any):
        """Take the text half; the image half is thrown away.

        Args:
            model: A model of open_clip.
        """
        super().__init__()
        model.visual = None
        self.model: Any = model

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """The projected vectors."""
        return self.model.encode_text(ids)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer layers."""
        return next(tuple(module) for module in self.model.modules() if isinstance(module, nn.ModuleList))


def open_clip_tower(spec: TextSpec, load: Load) -> OpenClipTower:
    """The tower with published weights (`Load.source` is a tag), those of a file, or random ones.

    Raises:
        CheckpointError: If the weights cannot be found or do not fit.
        MissingPackageError: If open_clip is not installed.
    """
    name = spec.architecture["name"]
    open_clip = _open_clip(name)
    pretrained = None if load.source is None else str(load.source)
    try:
        with without_logs():
            model = open_clip.create_model(name, pretrained=pretrained, pretrained_text=False, device=torch.get_default_device())
    except (OSError, RuntimeError) as error:  # RuntimeError: no such weights, or of another model
        raise CheckpointError(
            f"Weights of open-clip:{name}:{pretrained} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}"
        ) from error
    return OpenClipTower(model.to(load.dtype))


def open_clip_tokenizer(spec: TextSpec, source: str | Path | None) -> Any:
    """The tokenizer that open_clip names for the model, whatever the weights.

    Raises:
        CheckpointError: If it comes from the hub and cannot be fetched.
        MissingPackageError: If open_clip is not installed.
    """
    name = spec.architecture["name"]
    try:
        with without_logs():
            return _open_clip(name).get_tokenizer(name)
    except OSError as error:
        raise CheckpointError(
            f"The tokenizer of open-clip:{name} could not be loaded ({' '.join(str(error).split())[:300]}). {WEIGHTS_REMEDY}"
        ) from error


def open_clip_text(spec: TextSpec, load: Load) -> PaddedTextEncoder:
    """The encoder of a spec: open_clip's tokenizers pad to one length themselves."""
    tower, tokenizer = open_clip_tower(spec, load), spec.tokenizer(spec, load.source)
    known_as = f"open-clip:{spec.architecture['name']}"
    return PaddedTextEncoder(tower, spec, tokenizer=tokenizer, ids_of=tokenizer, known_as=known_as, source=load.source)


def open_clip_spec(name: str) -> TextSpec:
    """The spec of any open_clip text tower: `<model>`, `<model>:<tag of weights>` or `<model>:<file>`, with `-text` behind it or not.

    Raises:
        UnknownNameError: If open_clip has no such model, or the model no such weights and there is no such file.
        MissingPackageError: If open_clip is not installed.
    """
    model, _, pretrained = name.removesuffix("-text").partition(":")
    open_clip = _open_clip(model)
    config = open_clip.get_model_config(model)
    if config is None:
        raise UnknownNameError("open_clip model", model, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise UnknownNameError(f"file, nor weights of the open_clip model {model},", pretrained, tags)
    return TextSpec(
        build=open_clip_tower,
        tokenizer=open_clip_tokenizer,
        assemble=open_clip_text,
        source=pretrained or None,
        architecture={"name": model},
        width=config["embed_dim"],
        max_length=config["text_cfg"].get("context_length", open_clip.model.CLIPTextCfg.context_length),
        num_parameters=None,
        license="see the model's page",
        paper="doi:10.5281/zenodo.5143773",
        packages=("open-clip-torch",),
    )


def _open_clip(name: str) -> Any:
    require("open_clip", f"The text encoder open-clip:{name}", extra="openclip")
    import open_clip

    return open_clip


OPEN_SPECS = {"open-clip:<model>:<weights>-text": open_clip_spec}
