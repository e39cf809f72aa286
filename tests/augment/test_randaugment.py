"""The distribution of RandAugment's policies and the strengths in its table."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from ssl_weighting.augment import RandAugment
from ssl_weighting.augment.ops import OPS

ENHANCE = [0.28, 0.46, 0.64, 0.82, 1.0, 1.18, 1.36, 1.54, 1.72]
SHEAR = [0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.24, 0.27]
PIXELS = [m / 32 for m in range(1, 10)]
STRENGTHS = {
    "autocontrast": [1.0] * 9,
    "equalize": [1.0] * 9,
    "rotate": [3, 6, 9, 12, 15, 18, 21, 24, 27],
    "solarize": [231, 205, 180, 154, 128, 103, 77, 52, 26],
    "color": ENHANCE,
    "contrast": ENHANCE,
    "brightness": ENHANCE,
    "sharpness": ENHANCE,
    "shear_x": SHEAR,
    "shear_y": SHEAR,
    "translate_x": PIXELS,
    "translate_y": PIXELS,
    "posterize": [4, 4, 3, 3, 2, 2, 2, 1, 1],
}
SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
EXTRA = {
    "fixmatch": {"identity": [1.0] * 9},
    "uda": {"invert": [1.0] * 9, "cutout": [2 * m / 32 for m in range(1, 10)]},
}

each_policy = pytest.mark.parametrize("policy", EXTRA)


@each_policy
def test_strengths_are_those_of_the_sources(policy):
    augment = RandAugment(policy)
    expected = STRENGTHS | EXTRA[policy]
    assert set(augment.names) == set(expected)
    for name, row in zip(augment.names, augment.table, strict=True):
        torch.testing.assert_close(row, torch.tensor(expected[name], dtype=torch.float32), msg=name)
    assert {name for name, signed in zip(augment.names, augment.signed, strict=True) if signed} == SIGNED


@each_policy
def test_policies_have_the_stated_distribution(policy):
    torch.manual_seed(0)
    n = 60_000
    augment = RandAugment(policy)
    choice, magnitude = augment.draw(n)
    assert choice.shape == magnitude.shape == (2, n)
    expected: dict[tuple[int, float], float] = {}
    for position, name in enumerate(augment.names):
        signs = (1, -1) if name in SIGNED else (1,)
        for level, sign in product((STRENGTHS | EXTRA[policy])[name], signs):
            key = position, round(sign * level, 4)
            expected[key] = expected.get(key, 0) + n / 2 / len(augment.names) / 9 / len(signs)
    for layer in range(2):
        applied = choice[layer] >= 0
        assert chisquare([applied.sum(), n - applied.sum()]).pvalue > 0.001
        counts = dict.fromkeys(expected, 0)
        for key in zip(choice[layer, applied].tolist(), magnitude[layer, applied].tolist(), strict=True):
            counts[key[0], round(key[1], 4)] += 1
        share = sum(counts.values()) / sum(expected.values())
        assert chisquare(list(counts.values()), [e * share for e in expected.values()]).pvalue > 0.001


@each_policy
def test_the_two_operations_are_independent(policy):
    torch.manual_seed(0)
    augment = RandAugment(policy)
    choice, _ = augment.draw(60_000)
    both = choice[:, (choice >= 0).all(0)]
    k = len(augment.names)
    assert chisquare(torch.bincount(both[0] * k + both[1], minlength=k * k)).pvalue > 0.001


def test_views_are_the_drawn_policies_applied():
    names = RandAugment("fixmatch").names
    torch.manual_seed(3)
    images, augment = torch.rand(50, 3, 16, 16), RandAugment("fixmatch")
    torch.manual_seed(4)
    choice, magnitude = augment.draw(50)
    torch.manual_seed(4)
    views = augment(images)
    for i in range(50):
        image = images[i : i + 1]
        for layer in range(2):
            if choice[layer, i] >= 0:
                image = OPS[names[choice[layer, i]]](image, magnitude[layer, i : i + 1])
        torch.testing.assert_close(views[i : i + 1], image)


def test_nothing_is_learned():
    assert not RandAugment("uda").state_dict()
