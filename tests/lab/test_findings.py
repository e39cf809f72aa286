"""The claims about near duplicates and wrong labels, in small."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from lab.claims import near_duplicates, wrong_labels


def test_near_duplicates_of_digits_are_found_and_little_else():
    precision, recall = near_duplicates.digits([0, 1, 2, 3, 4], 3)
    assert precision >= 0.99
    assert recall == 1


def test_images_are_changed_a_little():
    images = torch.randint(60, 190, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = torch.nn.functional.interpolate(images.float(), size=32, mode="bilinear").to(torch.uint8)
    for kind, make in near_duplicates.MADE.items():
        made = make(images, np.random.default_rng(0))
        assert made.shape == images.shape, kind
        assert made.dtype == torch.uint8, kind
        assert 0 < (made.int() - images.int()).abs().float().mean() < 12, kind


def test_thresholds_are_chosen_by_what_they_find():
    found = {"none": torch.linspace(0, 0.5, 1000), "one": torch.linspace(0.6, 1, 400)}
    best, few = near_duplicates.thresholds(found).values()
    torch.testing.assert_close(best, 0.6)
    assert (found["none"] >= few).sum() == 10


def test_most_flipped_labels_of_digits_are_the_most_doubtful():
    inputs, true, given = wrong_labels.drawn(*load_digits(return_X_y=True), 0)
    assert (true != given).sum() == 10
    assert np.bincount(true).tolist() == [10] * 10
    found = wrong_labels.ranked(inputs, given)
    assert (true != given)[found.rows[:10]].sum() >= 7
