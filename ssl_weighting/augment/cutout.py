"""Cutout as a view of its own."""

import torch
from torch import Tensor, nn

from ssl_weighting.augment.ops import check_images, cutout


class Cutout(nn.Module):
    """Grey out one square of each image, around a uniformly drawn pixel and clipped at the borders.

    DeVries & Taylor 2017, as UDA and FixMatch end their strong view: side 16 on 32 x 32 images.

    Args:
        size: side of the square. A whole number counts the pixels of an image 32 wide, and stands for the
            same fraction of another width (16 is 4 pixels of 8); a float is the fraction of the width itself.

    Raises:
        ValueError: if the square would have no side or would be wider than the image.
    """

    def __init__(self, size: int | float = 16) -> None:
        super().__init__()
        self.fraction = size / 32 if isinstance(size, int) else size
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"size must be a whole number from 1 to 32, pixels of an image 32 wide, or a fraction of the "
                f"width in (0, 1], got {size}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Draw a square for each image.

        Args:
            images: float32 (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            float32 (B, C, H, W), a new tensor.

        Raises:
            ValueError: if ``images`` has another shape or type.
        """
        check_images(images)
        return cutout(images, torch.full(images.shape[:1], self.fraction, device=images.device))

    def extra_repr(self) -> str:
        """Name the settings when the module is printed."""
        return f"fraction={self.fraction}"
