"""What the benchmarks of whole steps train on, and in silence."""

from __future__ import annotations

import logging
import warnings
from types import MappingProxyType

import torch

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory


class RandomImages(SSLData):
    """Noise in the shape of CIFAR-10."""

    name = "random"
    all_class_names = tuple("0123456789")
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=4)})
    mean = std = (0.5, 0.5, 0.5)

    def load(self, train: bool) -> InMemory:
        """Images uint8 (50000, 3, 32, 32) and labels int64 (50000,)."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (50_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return InMemory(images, torch.arange(50_000) % 10)


def quiet() -> None:
    """Silence what Lightning has to say: a benchmark's output is its table."""
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
