"""Damaged images and near-duplicates, as further classes that a pool can be given: what it may hold unnoticed."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ssl_weighting.data.cifar10 import Cifar10
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory

KINDS = ("noise", "blurred", "occluded", "blended", "near-duplicates")
ORIGINALS = 10


def with_damaged(data: SSLData, own: InMemory) -> InMemory:
    """Training images and, as classes behind the set's own, damaged ones: as many of each kind as of the known classes.

    They are made of the training images of ``known_classes``, always the same, and reach the pool by ``pool_classes``
    and ``foreign_fraction``:

    - ``noise``: every pixel drawn anew from all pixels of the set;
    - ``blurred``: Gaussian, as wide as a quarter of the image;
    - ``occluded``: a grey square over a quarter of the area around the middle;
    - ``blended``: the mean of two images of different classes;
    - ``near-duplicates``: ten images over and over, a grey level or two apart.

    Args:
        data: Whose ``all_class_names`` end with :data:`KINDS`.
        own: Its training images, uint8 (n, C, H, W), and labels.
    """
    classes = len(data.all_class_names) - len(KINDS)
    known = torch.isin(own.labels, torch.tensor(data.known_classes))
    damaged = _damaged(own.inputs[known], own.labels[known])
    kinds = torch.arange(classes, classes + len(KINDS)).repeat_interleave(int(known.sum()))
    return InMemory(torch.cat((own.inputs, *damaged)), torch.cat((own.labels, kinds)))


def _damaged(images: Tensor, labels: Tensor) -> list[Tensor]:
    """Images (n, C, H, W) of every kind."""
    draw = torch.Generator().manual_seed(0)
    n, _, height, width = images.shape
    pixels = torch.randint(images.numel(), images.shape, generator=draw)
    blurred = gaussian_blur(images, [2 * (width // 4) + 1] * 2, [width / 4] * 2)
    occluded = images.clone()
    occluded[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = 128
    other = torch.randperm(n, generator=draw)
    while (same := labels[other] == labels).any():
        other[same] = torch.randint(n, (int(same.sum()),), generator=draw)
    blended = ((images.int() + images[other].int()) // 2).to(torch.uint8)
    originals = images[torch.randperm(n, generator=draw)[:ORIGINALS]][torch.arange(n) % ORIGINALS]
    shifts = torch.randint(-2, 3, images.shape, generator=draw)
    duplicates = (originals.int() + shifts).clamp(0, 255).to(torch.uint8)
    return [images.flatten()[pixels], blurred, occluded, blended, duplicates]


class CorruptedDigits(Digits):
    """:class:`Digits` with damaged images and near-duplicates: classes 10 to 14, see :func:`with_damaged`."""

    name = "corrupted_digits"
    all_class_names = (*Digits.all_class_names, *KINDS)

    def load(self, train: bool) -> InMemory:
        """uint8 (n, 1, 8, 8) images and their labels; for training the damaged ones follow."""
        own = super().load(train)
        return with_damaged(self, own) if train else own


class CorruptedCifar10(Cifar10):
    """:class:`Cifar10` with damaged images and near-duplicates: classes 10 to 14, see :func:`with_damaged`."""

    name = "corrupted_cifar10"
    all_class_names = (*Cifar10.all_class_names, *KINDS)  # type: ignore[assignment]

    def load(self, train: bool) -> InMemory:
        """uint8 (n, 3, 32, 32) images and their labels; for training the damaged ones follow."""
        own = super().load(train)
        return with_damaged(self, own) if train else own
