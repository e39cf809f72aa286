"""Damaged images as classes that only a pool holds."""

import numpy as np
import torch

from ssl_weighting.data import Digits
from ssl_weighting.data.corrupted import KINDS, CorruptedDigits

KNOWN = [0, 1, 2, 3, 4]


def kinds():
    """Own images of the known classes, and the damaged ones by kind."""
    everything = CorruptedDigits(known_classes=KNOWN).load(True)
    own = everything.inputs[torch.isin(everything.labels, torch.tensor(KNOWN))]
    return own, {kind: everything.inputs[everything.labels == 10 + i] for i, kind in enumerate(KINDS)}


def test_the_sets_own_images_come_first_and_unchanged():
    clean, all_of_them = Digits().load(True), CorruptedDigits(known_classes=KNOWN).load(True)
    assert torch.equal(all_of_them.inputs[: len(clean.inputs)], clean.inputs)
    assert torch.equal(all_of_them.labels[: len(clean.labels)], clean.labels)
    assert torch.equal(CorruptedDigits().load(False).inputs, Digits().load(False).inputs)


def test_each_kind_is_what_it_says():
    own, damaged = kinds()
    assert all(images.shape == own.shape and images.dtype == torch.uint8 for images in damaged.values())
    for kind in ("blurred", "occluded"):
        assert not any(torch.equal(a, b) for a, b in zip(damaged[kind], own, strict=True))

    def roughness(images):
        return images.float().diff(dim=-1).abs().mean()

    assert roughness(damaged["blurred"]) < 0.3 * roughness(own) < roughness(damaged["noise"])
    assert (damaged["occluded"][:, :, 2:6, 2:6] == 128).all()
    assert torch.equal(damaged["occluded"][:, :, :2], own[:, :, :2])
    assert abs(damaged["noise"].float().mean() - own.float().mean()) < 3

    flat, copies = own.flatten(1).int(), damaged["near-duplicates"].flatten(1).int()
    nearest = torch.stack([(flat - copy).abs().amax(1).min() for copy in copies[:50]])
    assert nearest.max() <= 2
    originals = {int((flat - copy).abs().amax(1).argmin()) for copy in copies}
    assert len(originals) == 10
    assert len(np.unique(copies.numpy(), axis=0)) > 0.9 * len(copies)  # near, not equal


def test_blends_are_means_of_two_classes():
    everything = CorruptedDigits(known_classes=KNOWN).load(True)
    known = torch.isin(everything.labels, torch.tensor(KNOWN))
    own, labels = everything.inputs[known].int(), everything.labels[known]
    blended = everything.inputs[everything.labels == 13].int()
    for row in range(20):
        partners = ((own + own[row]) // 2 == blended[row]).flatten(1).all(1)
        assert partners.any()
        assert (labels[partners] != labels[row]).all()


def test_they_reach_the_pool_as_foreign_classes():
    data = CorruptedDigits(known_classes=KNOWN, pool_classes=[10], foreign_fraction=0.5, num_labeled=10)
    data.setup("fit")
    labels = data.sets["unlabeled"].labels
    assert abs((labels == 5).float().mean() - 0.5) < 0.01
    assert data.class_names[5] == "noise"
    assert set(data.sets["validation"].labels.tolist()) == set(range(5))
