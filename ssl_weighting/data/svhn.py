"""Street View House Numbers."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import SVHN

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.downloaded import DownloadedImages
from ssl_weighting.data.files import check_md5, download
from ssl_weighting.data.source import InMemory
from ssl_weighting.errors import UserError, one_line


class Svhn(DownloadedImages):
    """SVHN, cropped digits: 73,257 training and 26,032 test images of 32×32 pixels, 10 unequal classes.

    Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011. The files are
    torchvision's, ``train_32x32.mat``, ``test_32x32.mat`` and ``extra_32x32.mat``.

    The weak augmentation crops but does not mirror: a mirrored digit is none. Labelled examples are drawn in
    proportion to the classes' sizes, so a few labels are not exactly the same number a class.

    Args:
        root: Folder that holds the ``.mat`` files.
        download: Download those that are not there (train 174 MiB, test 61 MiB, extra 1.2 GiB). What is there
            is never overwritten.
        extra: Add the 531,131 extra images to the training set, behind its own. In FixMatch's code ``svhn``
            is with them, ``svhn_noextra`` without. Off is the usual protocol: the scripts of MixMatch's and
            ReMixMatch's SVHN tables run ``svhn_noextra`` (MixMatch has a further table with ``svhn``).
        kwargs: See :class:`~ssl_weighting.data.downloaded.DownloadedImages`.
    """

    name = "svhn"
    all_class_names = tuple("0123456789")
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=4, flip=False)})
    statistics = ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614))

    def __init__(
        self, root: Path = Path("data"), download: bool = True, extra: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(root, download, **kwargs)
        self.extra = extra

    def prepare_data(self) -> None:
        """Download on one process a node, before all of them load."""
        if self.download:
            for part in ("train", "test", *(["extra"] if self.extra else [])):
                self._file(part)

    def load(self, train: bool) -> InMemory:
        """Read the ``.mat`` files.

        Returns:
            Images uint8 (n, 3, 32, 32), labels int64 (n,): the digit itself, the file's 10 being the digit 0.

        Raises:
            UserError: If files are missing, damaged or not SVHN's.
        """
        parts = ("train", "extra") if train and self.extra else ("train" if train else "test",)
        images, labels = zip(*(self._read(part) for part in parts), strict=True)
        return InMemory(torch.cat(images) if len(images) > 1 else images[0], torch.cat(labels))

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        """Images uint8 (n, 3, 32, 32) and labels int64 (n,) of one file."""
        from scipy.io import loadmat  # slow to import, and only needed here

        path = self._file(part)
        if self.verify_checksum:
            check_md5(path, SVHN.split_list[part][2], self.root)
        try:
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = content["X"], content["y"].ravel()
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
                raise ValueError(f"X is {images.dtype} {images.shape} instead of uint8 (32, 32, 3, n)")
            if len(labels) != images.shape[3]:
                raise ValueError(f"it holds {images.shape[3]} images and {len(labels)} labels")
            if not np.isin(labels, np.arange(11)).all():
                raise ValueError("not all labels are whole numbers from 0 to 10")
            digits = labels.astype(np.int64) % 10
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(
                f"data.root={self.root}: {path.name} is not a whole SVHN file ({one_line(error)}); delete it "
                "and get it again"
            ) from None
        return torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), torch.from_numpy(digits)

    def _file(self, part: str) -> Path:
        """The file of a part, after download if need be."""
        url, name, md5 = SVHN.split_list[part]
        path: Path = self.root / name
        if not path.is_file():
            if not self.download:
                raise UserError(
                    f"data.root={self.root}: {name} is not there; put it there, name the folder that has it, "
                    "or set --data.download true"
                )
            download(url, path, md5, self.root)
        return path
