"""What the augmentations of images share."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ssl_weighting.augment.ops import check_images


class ImageAugmentation(nn.Module, ABC):
    """Maps a batch of images to a batch of views, each image by its own random draw.

    Attributes:
        settings: Names of the attributes that are printed with it.
    """

    settings: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Augment each image.

        Args:
            images: float32 (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            float32 (B, C, H, W) in [0, 1], a new tensor.

        Raises:
            ValueError: if ``images`` has another shape or type.
        """
        check_images(images)
        return self.augment(images)

    @abstractmethod
    def augment(self, images: Tensor) -> Tensor:
        """The views of images (B, C, H, W) that have been checked."""

    def extra_repr(self) -> str:
        """Name the settings when the module is printed."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.settings)
