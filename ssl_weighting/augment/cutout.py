"""Cutout as a view of its own."""

import torch
from torch import Tensor

from ssl_weighting.augment.base import ImageAugmentation
from ssl_weighting.augment.ops import cutout


class Cutout(ImageAugmentation):
    """Grey out one square of each image, around a uniformly drawn pixel and clipped at the borders.

    DeVries & Taylor 2017, as UDA and FixMatch end their strong view: side 16 on 32 x 32 images.

    Args:
        size: side of the square. A whole number counts the pixels of an image 32 wide, and stands for the
            same fraction of another width (16 is 4 pixels of 8); a float is the fraction of the width itself.

    Raises:
        ValueError: if the square would have no side or would be wider than the image.
    """

    settings = ("fraction",)

    def __init__(self, size: int | float = 16) -> None:
        super().__init__()
        self.fraction = size / 32 if isinstance(size, int) else size
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"size must be a whole number from 1 to 32, pixels of an image 32 wide, or a fraction of the "
                f"width in (0, 1], got {size}"
            )

    def augment(self, images: Tensor) -> Tensor:
        """Draw a square for each image."""
        return cutout(images, torch.full(images.shape[:1], self.fraction, device=images.device))
