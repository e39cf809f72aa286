"""A small convolutional net, for small images, short runs and demonstrations."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.protocols import Inputs


class SmallConvNet(Backbone):
    """Stages of two 3×3 convolutions with batch norm and ReLU, halving the image in between.

    Args:
        in_channels: Channels of the images.
        channels: Channels of every stage.
    """

    def __init__(self, in_channels: int = 3, channels: tuple[int, ...] = (32, 64)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = in_channels
        for number, filters in enumerate(channels):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for inputs in (before, filters):
                conv = nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(filters), nn.ReLU()]
            stages.append(nn.Sequential(*layers))
            before = filters
        self.stages = nn.Sequential(*stages)
        self.feature_dim = before
        self.last_block = rf"stages\.{len(channels) - 1}\."

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, channels[-1]) of images (B, in_channels, H, W)."""
        maps: Tensor = self.stages(inputs)
        return maps.mean((2, 3))
