"""Wide ResNet (Zagoruyko & Komodakis 2016), as in Google's FixMatch and UDA-for-comparison code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs


class WideResNet(Backbone):
    """WRN-depth-width with pre-activation units, LeakyReLU(0.1) and global average pooling.

    The defaults are WRN-28-2 in every detail of Google's code (1.5M parameters with ten classes): convolutions have
    biases, batch norm has eps 1e-3, the first unit of the first group activates before its shortcut, and those of
    the other groups feed the raw input to the 1×1 shortcut and the activated one to the convolutions.

    Args:
        depth: 6n + 4.
        width: Widening factor; the groups have 16·width, 32·width and 64·width channels.
        in_channels: Channels of the images.
        batchnorm_momentum: Share of the newest batch in the running statistics. Google's 0.001 needs some
            thousand steps to be of use; short runs want 0.1.

    Raises:
        UserError: If the depth is not 6n + 4.
    """

    def __init__(
        self, depth: int = 28, width: int = 2, in_channels: int = 3, batchnorm_momentum: float = 0.001
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"model.backbone.depth={depth}: must be 6n + 4, such as 10, 16, 28")
        units = (depth - 4) // 6
        self.stem = _conv(in_channels, 16, 3)
        channels, groups = 16, []
        for number, filters in enumerate((16 * width, 32 * width, 64 * width)):
            group = []
            for unit in range(units):
                first = unit == 0
                group.append(
                    _Unit(
                        channels,
                        filters,
                        stride=2 if first and number > 0 else 1,
                        activate_before_shortcut=first and number == 0,
                        momentum=batchnorm_momentum,
                    )
                )
                channels = filters
            groups.append(nn.Sequential(*group))
        self.groups = nn.Sequential(*groups)
        self.norm = _norm(channels, batchnorm_momentum)
        self.activation = _activation()
        self.feature_dim = channels
        self.last_block = rf"groups\.2\.{units - 1}\.|norm\."

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, 64·width) of images (B, in_channels, H, W)."""
        maps: Tensor = self.activation(self.norm(self.groups(self.stem(inputs))))
        return maps.mean((2, 3))


class _Unit(nn.Module):
    def __init__(
        self, channels: int, filters: int, stride: int, activate_before_shortcut: bool, momentum: float
    ) -> None:
        super().__init__()
        self.activate_before_shortcut = activate_before_shortcut
        self.norm1, self.conv1 = _norm(channels, momentum), _conv(channels, filters, 3, stride)
        self.norm2, self.conv2 = _norm(filters, momentum), _conv(filters, filters, 3)
        self.shortcut = nn.Identity() if channels == filters else _conv(channels, filters, 1, stride)
        self.activation = _activation()

    def forward(self, x: Tensor) -> Tensor:
        """The unit's output, of the convolutions' shape."""
        activated = self.activation(self.norm1(x))
        shortcut: Tensor = self.shortcut(activated if self.activate_before_shortcut else x)
        out: Tensor = self.conv2(self.activation(self.norm2(self.conv1(activated))))
        return out + shortcut


def _conv(channels: int, filters: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution padded as TensorFlow's ``same``: on even sizes a stride of 2 pads below and right only."""
    padding = (size - 1) // 2
    conv = nn.Conv2d(channels, filters, size, stride, padding=0 if stride > 1 else padding)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (size * size * filters)))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return _SameStride(conv) if stride > 1 and size > 1 else conv


class _SameStride(nn.Sequential):
    """A strided convolution with TensorFlow's ``same`` padding for any input size."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x, padded by what its size asks for."""
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        pads = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True
        ):
            total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        out: Tensor = conv(torch.nn.functional.pad(x, pads))
        return out


def _activation() -> nn.LeakyReLU:
    """In the memory of its input, a batch norm's output, which nobody else reads."""
    return nn.LeakyReLU(0.1, inplace=True)


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)
