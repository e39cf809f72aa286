"""What CIFAR-10 and SVHN share: files from the authors' sites, colour images of 32×32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from ssl_weighting.data.images import read_images
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.remembered import NewExamples
from ssl_weighting.files import home_path


class DownloadedImages(SSLData):
    """Images of 32×32 pixels in files that are downloaded where they are missing, and never overwritten.

    Names, addresses and md5 are torchvision's; its classes are not used, for ``CIFAR10`` unpickles with plain
    ``pickle.load``, which runs code that a file holds, and both refuse a copy that a mirror wrote anew.

    Args:
        root: Folder that holds the files.
        download: Download those that are not there. What is there is never overwritten.
        verify_checksum: Refuse files that have not the official md5. Switch it off for copies from a mirror
            that were written anew.
        normalise_by: ``range`` maps pixels to [−1, 1] (Google's code: MixMatch, FixMatch, Ren et al.);
            ``statistics`` subtracts the data set's mean and divides by its deviation, a channel (UDA's code).
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.

    Attributes:
        statistics: Mean and deviation of the training set's pixels, a channel.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    statistics: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]]

    def __init__(
        self,
        root: Path = Path("data"),
        download: bool = True,
        verify_checksum: bool = True,
        normalise_by: Literal["range", "statistics"] = "range",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = home_path(root)
        self.download, self.verify_checksum = download, verify_checksum
        if normalise_by == "statistics":
            self.mean, self.std = self.statistics

    def read_new(self, where: Path, key: str = "--on") -> NewExamples:
        """A folder of images, or a table of paths, scaled to 32 pixels; see :meth:`SSLData.read_new`."""
        return read_images(where, 32, None, key)
