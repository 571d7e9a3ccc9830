"""What an image encoder for contrast is before any download (`ImageSpec`), the wrapper of them all, and the scale of a published pair. Knows no family.

An image encoder is a vision backbone's pooled vector and its projection into a joint space. The one that was trained together with the text encoder
`<name>-text` is registered as `<name>-image`. Pictures become pixels by its image policy (`vlm.data.image.to_pixels`): for RGB and gray pictures
bit-equal to the library that the encoder comes from; transparent parts become white, where those libraries show what is stored behind them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlm.backbones.fingerprint import fingerprint
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import VisionSpec
from vlm.backbones.weight_files import read_tensors
from vlm.errors import CheckpointError, ConfigError
from vlm.types import ImagePolicy

Scale = tuple[float, float]  # what a cosine is multiplied with, and what is added then, before softmax or sigmoid
CLIP_INIT: Scale = (1 / 0.07, 0.0)  # section 2.5 of arXiv:2103.00020
SIGLIP_INIT: Scale = (10.0, -10.0)  # section 3.2 of arXiv:2303.15343


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """One image encoder, known before any download.

    Attributes:
        build: Makes the module; see `Load`.
        source: What `Load.source` is by default: a hub id, or what else `build` loads; None for encoders that are random by intent.
        width: Width of a picture's vector.
        image_policy: How a picture becomes pixels in the encoder's own library.
        mean: Channel means that are subtracted, of values in 0 to 1.
        std: Channel deviations that are divided by.
        num_parameters: Parameters of the encoder, with its projection into the joint space.
        pooling: What the vector is, in words.
        license: Licence of the weights.
        paper: Where the model is described.
        vision: The vision backbone that it is made of, if it is one of `VISION`.
        architecture: What else changes the vectors of given weights, such as activations.
        initial_scale: Scale and bias at the begin of the training of the published pair; None if it was trained without texts.
        read_scale: Reads them from a checkpoint.
        revision: Commit at the hub; empty for the newest.
        aliases: Other names.
        package: Optional pip package that `build` needs, or empty.
    """

    build: Callable[["ImageSpec", Load], "PooledImage"]
    source: str | None
    width: int
    image_policy: ImagePolicy
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_parameters: int
    pooling: str
    license: str
    paper: str
    vision: VisionSpec | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    initial_scale: Scale | None = None
    read_scale: Callable[["ImageSpec", Load], Scale] | None = None
    revision: str = ""
    aliases: tuple[str, ...] = ()
    package: str = ""

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.image_policy.size

    @property
    def tower(self) -> VisionSpec:
        """The vision backbone of an encoder that is made of one."""
        assert self.vision is not None
        return self.vision


def of_vision(
    vision: VisionSpec, *, build: Callable[[ImageSpec, Load], "PooledImage"], image_policy: ImagePolicy, pooling: str, **others: Any
) -> ImageSpec:
    """The spec of an encoder that is made of a vision backbone; what `others` leave out is the backbone's.

    Args:
        vision: The backbone.
        build: See `ImageSpec`, as are the rest.
        image_policy: How a picture becomes pixels.
        pooling: What the vector is.
        others: Other fields.
    """
    origin = {"source": vision.source, "license": vision.license, "paper": vision.paper, "package": vision.package}
    sizes = {"width": vision.pooled_width or vision.width, "num_parameters": vision.num_parameters}
    facts: dict[str, Any] = {
        "mean": vision.mean,
        "std": vision.std,
        "architecture": vision.architecture,
        "vision": vision,
        **origin,
        **sizes,
        **others,
    }
    return ImageSpec(build=build, image_policy=image_policy, pooling=pooling, **facts)


class PooledImage(nn.Module):
    """A tower's pooled vector, projected: the `ImageEncoder` of every family."""

    def __init__(self, spec: ImageSpec, tower: Any, *, projection: nn.Module | None = None):
        """Join a tower and its projection.

        Args:
            spec: The spec.
            tower: A module that normalizes pixels, with `pooled` and `blocks`, as vision backbones have.
            projection: From the pooled vector into the joint space; None if that is the joint space.
        """
        super().__init__()
        self.tower, self.projection = tower, projection or nn.Identity()
        self.width, self.image_policy, self.architecture = spec.width, spec.image_policy, spec.architecture
        self.vision = spec.vision
        self._spec = spec

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """One vector a picture, not normalized.

        Raises:
            ConfigError: If the pixels are of another size than the encoder takes.
        """
        return self.projection(self.tower.pooled(pixels))

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the tower."""
        return self.tower.blocks()

    def describe(self) -> dict[str, object]:
        """All that changes the vectors, as a cache's key needs it. The source is the spec's, so a copy in a folder is described as the published weights are."""
        return {
            "source": self._spec.source,
            "revision": self._spec.revision,
            "weights": fingerprint(self, adapters=True),
            "architecture": dict(self._spec.architecture),
            "pooling": self._spec.pooling,
            "image_policy": asdict(self.image_policy),
            "mean": list(self._spec.mean),
            "std": list(self._spec.std),
            "width": self.width,
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
        }


def build_image(spec: ImageSpec, load: Load) -> PooledImage:
    """An image encoder in evaluation mode.

    Args:
        spec: What to build.
        load: Where its weights come from; `Load(source=spec.source)` for the published ones, None for random ones.

    Raises:
        CheckpointError: If the weights cannot be found, are of another model, lack a tensor or have one too many.
        MissingPackageError: If a package that the encoder needs is not installed.
    """
    return spec.build(spec, load).eval()


def joint_scale(spec: ImageSpec, load: Load) -> Scale:
    """Scale and bias of a published pair: scale * cosine + bias are the values that its softmax or sigmoid was trained on.

    Args:
        spec: The image half.
        load: Where its weights come from. Without weights, the values that the training of such a pair begins with.

    Raises:
        ConfigError: If the encoder was trained without texts.
        CheckpointError: If the checkpoint cannot be read, or does not say.
    """
    if spec.initial_scale is None or spec.read_scale is None:
        raise ConfigError(f"{spec.source} was trained without texts, so no scale of similarities is published for it. Train one with a head.")
    return spec.initial_scale if load.source is None else spec.read_scale(spec, load)


def stored_scale(spec: ImageSpec, load: Load) -> Scale:
    """Scale and bias by the names that transformers gives them; a checkpoint stores the logarithm of the scale.

    Raises:
        CheckpointError: If the checkpoint cannot be read or lacks one that its kind of pair has.
    """
    assert load.source is not None
    names = ("logit_scale", "logit_bias") if spec.initial_scale == SIGLIP_INIT else ("logit_scale",)
    stored = tensors_of(spec, load, names)
    values = [float(stored[name].float().squeeze()) for name in names]
    return math.exp(values[0]), values[1] if len(values) > 1 else 0.0


def tensors_of(spec: ImageSpec, load: Load, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name.

    Raises:
        CheckpointError: With those that it lacks.
    """
    assert load.source is not None
    found = read_tensors(load.source, lambda name: name in names, revision=revision_of(spec, load))
    if missing := sorted(set(names) - found.keys()):
        raise CheckpointError(f"{load.source} lacks {', '.join(missing)}. Name the whole model, both towers with their projections, not one tower.")
    return found


def revision_of(spec: ImageSpec, load: Load) -> str:
    """The pinned commit, if the weights come from the spec's own source."""
    return spec.revision if load.source == spec.source else ""


def stored_projection(spec: ImageSpec, load: Load, *, name: str = "visual_projection.weight") -> nn.Linear:
    """The projection of CLIP's family, random without a source.

    Raises:
        CheckpointError: If the checkpoint lacks it or has one of another shape.
    """
    projection = nn.Linear(spec.tower.pooled_width or spec.tower.width, spec.width, bias=False, dtype=load.dtype)
    if load.source is None:
        return projection
    stored = tensors_of(spec, load, (name,))[name]
    if stored.shape != projection.weight.shape:
        raise CheckpointError(
            f"{load.source} is another model than its name says: {name} is {tuple(stored.shape)}, expected {tuple(projection.weight.shape)}."
        )
    with torch.no_grad():
        projection.weight.copy_(stored)
    return projection
