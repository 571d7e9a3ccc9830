"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant of tensorflow/tpu) without its classifier; batch norm uses trained statistics."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# kernel, stride, expansion, width, repeats: table 1 of the paper
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_WIDTH, HEAD_WIDTH = 32, 1280


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad, then convolve."""
        bottom, right = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, stride, kernel in zip(input.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        return super().forward(F.pad(input, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)))


def conv(width_in: int, width_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activation: bool = True) -> nn.Sequential:
    """Convolution, batch norm (TensorFlow's epsilon), ReLU6."""
    layers = [SameConv2d(width_in, width_out, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(width_out, eps=1e-3)]
    return nn.Sequential(*layers, nn.ReLU6()) if activation else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a skip where shapes agree."""

    def __init__(self, width_in: int, width: int, *, kernel: int, stride: int, expansion: int) -> None:
        """One block."""
        super().__init__()
        inner = width_in * expansion
        self.expand = conv(width_in, inner) if expansion > 1 else nn.Identity()
        self.depthwise = conv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = conv(inner, width, activation=False)
        self.skips = stride == 1 and width_in == width

    def forward(self, hidden: Tensor) -> Tensor:
        """The block."""
        out = self.project(self.depthwise(self.expand(hidden)))
        return hidden + out if self.skips else out


class EfficientNetLite0(nn.Module):
    """The map of one stage, row by row."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Build the network; `position` is the stage: 0 the stem, 8 the head."""
        super().__init__()
        self.stem, self.body, width_in = conv(3, STEM_WIDTH, 3, stride=2), nn.ModuleList(), STEM_WIDTH
        for kernel, stride, expansion, width, repeats in STAGES:
            for i in range(repeats):
                self.body.append(InvertedResidual(width_in, width, kernel=kernel, stride=1 if i else stride, expansion=expansion))
                width_in = width
        self.head = conv(width_in, HEAD_WIDTH)
        self.position = options["position"]

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Switch the mode of everything but batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, patches, width]."""
        hidden = self.stem(images)
        for block in self.body[: sum(repeats for *_, repeats in STAGES[: self.position])]:
            hidden = block(hidden)
        hidden = self.head(hidden) if self.position > len(STAGES) else hidden
        return hidden.flatten(2).transpose(1, 2).contiguous()
