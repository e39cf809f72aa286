"""The weak view: flip and crop."""

import torch
from torch import Tensor

from ssl_weighting.augment.base import ImageAugmentation


class RandomFlipCrop(ImageAugmentation):
    """Mirror each image with probability 1/2, reflect-pad it and crop it back to its size at random.

    The weak augmentation of MixMatch, UDA and FixMatch: padding 4 with flips on CIFAR, without on SVHN.

    Args:
        padding: pixels of reflected border on each side, smaller than the images' height and width.
        flip: whether to mirror left to right. Off where it changes the class, as for digits.

    Raises:
        ValueError: if ``padding`` is negative.
    """

    settings = ("padding", "flip")

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        super().__init__()
        if padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {padding}")
        self.padding = padding
        self.flip = flip

    def augment(self, images: Tensor) -> Tensor:
        """Draw a flip and a crop for each image.

        Raises:
            ValueError: if the images are too small for the padding.
        """
        n, c, h, w = images.shape
        if self.padding >= min(h, w):
            raise ValueError(
                f"padding must be smaller than the images, got {self.padding} for {h} x {w}; "
                f"set it to {min(h, w) - 1} or less"
            )
        rows, columns = self._source(n, h, images.device), self._source(n, w, images.device)
        if self.flip:
            mirrored = torch.rand(n, 1, device=images.device) < 0.5
            columns = torch.where(mirrored, w - 1 - columns, columns)
        index = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, h * w)
        return images.flatten(2).gather(2, index.expand(n, c, h * w)).view_as(images)

    def _source(self, n: int, size: int, device: torch.device) -> Tensor:
        """(n, size): which pixel along one axis each output pixel shows, reflected at both ends."""
        shift = torch.randint(-self.padding, self.padding + 1, (n, 1), device=device)
        position = (torch.arange(size, device=device) + shift).abs()
        return size - 1 - (size - 1 - position).abs()
