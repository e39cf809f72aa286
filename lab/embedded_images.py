"""CIFAR-10 as features of a frozen image encoder, kept as ``.npz``: two batches to train with, and the test set."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_weighting.backbones.timm_model import TimmModel
from ssl_weighting.data.cifar10 import Cifar10
from ssl_weighting.encoder import Encoder

SIDE, BATCH, PART = 96, 250, 10_000
"""Pixels that images are enlarged to; images of a pass, and of a file."""
MEAN, DEVIATION = 0.498, 0.502
"""Of the pixels, as EfficientNet-Lite0 was trained with."""


@torch.no_grad()
def features_of(images: Tensor, encoder: str) -> Tensor:
    """Features (n, D) float32 of images uint8 (n, 3, H, W).

    In float32: depthwise convolutions in bfloat16 take a processor ten times as long.

    Args:
        images: As they are.
        encoder: Folder of a ``timm`` model.
    """
    model = Encoder(TimmModel(encoder, pretrained=True, frozen=True), SIDE)
    batches = torch.split(images, BATCH)
    return torch.cat([model.features((batch / 255 - MEAN) / DEVIATION) for batch in batches])


def embed(cifar10: Path, encoder: str, folder: Path) -> None:
    """Write the parts that are missing in a folder, and say how long each took.

    Args:
        cifar10: As ``Cifar10`` reads it.
        encoder: Folder of a ``timm`` model.
        folder: Made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = Cifar10(cifar10, verify_checksum=False)
    for name, train, first in (
        ("data_batch_1", True, 0),
        ("data_batch_2", True, PART),
        ("test_batch", False, 0),
    ):
        path = folder / f"{name}.npz"
        if path.exists():
            continue
        source = data.load(train=train)
        rows = slice(first, first + PART)
        began = time.perf_counter()
        found = features_of(source.inputs[rows], encoder)
        partial = path.with_suffix(".part.npz")
        np.savez(partial, features=found.numpy(), labels=source.labels[rows].numpy())
        partial.rename(path)
        print(f"{name}: {len(found):,} images, {time.perf_counter() - began:.0f} s", flush=True)
