"""Handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory
from ssl_weighting.errors import UserError

NUM_IMAGES = 1797


class Digits(SSLData):
    """scikit-learn's ``load_digits``: 1,797 images of 8×8 pixels, 10 classes of nearly equal size.

    The test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998). The
    set has no official split: test images are drawn once and for all, stratified, by scikit-learn's
    ``train_test_split`` with seed 0, whatever the run's seed; the others train, in the set's order.

    Args:
        num_test: Size of the test set; with the default 1,297 images train.
        num_labeled: Labelled examples.
        num_validation: Validation examples.
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.
    """

    name = "digits"
    all_class_names = tuple("0123456789")
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=1, flip=False)})
    mean = (0.5,)
    std = (0.5,)

    def __init__(
        self, num_test: int = 500, num_labeled: int = 50, num_validation: int = 200, **kwargs: Any
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **kwargs)
        if not 10 <= num_test <= NUM_IMAGES - 10:
            raise UserError(f"data.num_test={num_test}: must lie between 10 and {NUM_IMAGES - 10}")
        self.num_test = num_test

    def load(self, train: bool) -> InMemory:
        """Images uint8 (n, 1, 8, 8), 0 to 16 of the set stretched to 0 to 255, and labels int64 (n,)."""
        from sklearn.datasets import load_digits  # slow to import
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train_rows, test_rows = train_test_split(
            np.arange(len(labels)), test_size=self.num_test, stratify=labels, random_state=0
        )
        rows = np.sort(train_rows if train else test_rows)
        pixels = np.rint(images[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        return InMemory(torch.from_numpy(pixels), torch.from_numpy(labels[rows].astype(np.int64)))
