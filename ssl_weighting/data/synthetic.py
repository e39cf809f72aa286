"""Points in the plane, two classes: the paper's synthetic experiments."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory
from ssl_weighting.errors import UserError


class Synthetic(SSLData):
    """Two classes of points in the plane, float32 (n, 2), of equal size, drawn anew for every run.

    Section 4.1 of the paper: 10 labelled, 30 validation and 1000 unlabelled points. The unlabelled list is
    all training points but the validation ones, so ``pool_size + num_validation`` points are drawn to make
    it exactly ``pool_size`` long, and the labelled points are among them.

    ``linear`` is two bands of 0.3×4 along the line x + y = 0, 0.1 apart and without noise, so that a line
    separates them but ten labels do not say which; ``circles`` (radii 1 and 0.5) and ``moons`` are
    scikit-learn's. The paper gives neither noise nor exact shapes.

    The only augmentation, ``weak``, does nothing.

    Args:
        shape: Which points; also the data set's name.
        noise: Standard deviation of the Gaussian that blurs both coordinates; by default none for
            ``linear`` and 0.1 for the others.
        pool_size: Length of the unlabelled list.
        num_test: Number of test points.
        data_seed: Seed of the points; default is the seed of the split, so that every run has its own.
        num_labeled: Labelled points.
        num_validation: Validation points.
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.
    """

    all_class_names = ("0", "1")
    augmentations = MappingProxyType({"weak": nn.Identity()})

    def __init__(
        self,
        shape: Literal["linear", "circles", "moons"] = "moons",
        noise: float | None = None,
        pool_size: int = 1000,
        num_test: int = 1000,
        data_seed: int | None = None,
        num_labeled: int = 10,
        num_validation: int = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **kwargs)
        if shape not in ("linear", "circles", "moons"):
            raise UserError(f"data.shape={shape}: must be linear, circles or moons")
        noise = (0.0 if shape == "linear" else 0.1) if noise is None else noise
        if not 0 <= noise < float("inf"):
            raise UserError(f"data.noise={noise}: must be a number from 0")
        for key, value, least in (("pool_size", pool_size, num_labeled), ("num_test", num_test, 2)):
            if value < least:
                raise UserError(f"data.{key}={value}: must be at least {least}")
        if data_seed is not None and data_seed < 0:
            raise UserError(f"data.data_seed={data_seed}: must be at least 0")
        self.name, self.noise, self.pool_size, self.num_test = shape, noise, pool_size, num_test
        self.data_seed = data_seed
        self.num_training = pool_size + num_validation

    def load(self, train: bool) -> InMemory:
        """Points float32 (n, 2) and labels int64 (n,); training and test points are drawn apart."""
        from sklearn.datasets import make_circles, make_moons  # slow to import

        n = self.num_training if train else self.num_test
        bits = np.random.MT19937(np.random.SeedSequence((self._points_seed(), int(train))))
        random = np.random.RandomState(bits)  # its stream is frozen, a newer Generator's is not
        match self.name:
            case "linear":
                points, labels = _linear(n, self.noise, random)
            case "circles":
                points, labels = make_circles(n, noise=self.noise, factor=0.5, random_state=random)
            case _:
                points, labels = make_moons(n, noise=self.noise, random_state=random)
        return InMemory(
            torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
        )

    def _points_seed(self) -> int:
        if self.data_seed is not None:
            return self.data_seed
        if self.split_file is not None:  # another run's split: its points as well
            try:
                return int(json.loads(self.split_file.read_text(encoding="utf-8"))["seed"])
            except (OSError, ValueError, TypeError, KeyError):
                pass  # reading the split itself will say what is wrong
        return self.seed if self.split_seed is None else self.split_seed


def _linear(n: int, noise: float, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) on both sides of the line x + y = 0, in random order, and labels (n,)."""
    labels = random.permutation(np.arange(n) % 2)
    across = (2 * labels - 1) * random.uniform(0.05, 0.35, n)
    along = random.uniform(-2, 2, n)
    points = np.stack((across - along, across + along), axis=1) / np.sqrt(2)
    return points + random.normal(0, noise, (n, 2)), labels
