"""What tables of frozen features have in common: rows, perfect weights, intervals, and what is said of them."""

import argparse
import math

import numpy as np
import pytest
import torch

from lab import frozen
from ssl_weighting import SSLClassifier

KEY = ("split", "pool", "labels", "seed")


def test_a_class_with_fewer_examples_gives_them_all():
    truth = np.array([0, 1, 0, -1, 0, 0, -1, 0])
    rows, labeled = frozen.draw_rows(truth, 2, 2, own=2, foreign=1)
    assert labeled == 3
    assert rows.tolist() == [0, 2, 1, 4, 5, 3]


def test_right_only_counts_right_pseudo_labels():
    generator = np.random.default_rng(0)
    truth = np.concatenate([np.arange(20) % 4, generator.integers(0, 4, 60), np.full(40, -1)])
    features = generator.normal(size=(120, 16)) + 2 * generator.normal(size=(5, 16))[truth]
    given = np.where(np.arange(120) < 20, truth, frozen.POOL)
    model = SSLClassifier(lambda x: x, lambda: frozen.RightOnly(torch.from_numpy(truth)), 8, choose=False)
    algorithm = model.fit(features, given).module_.algorithm
    counted = (algorithm.certainty > 0).numpy()
    assert counted.any()
    np.testing.assert_array_equal(algorithm.targets.argmax(1).numpy()[counted], truth[counted])
    assert not counted[given != frozen.POOL].any()


def test_intervals_are_students():
    mean, half = frozen.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(frozen.interval([1.0])[1])


def test_the_table_counts_cells_that_are_worse():
    def row(pool, seed, probe, ours):
        errors = dict.fromkeys(frozen.METHODS, "5.0") | {"probe": str(probe), "ours": str(ours)}
        return {"split": "four classes", "pool": pool, "labels": "5", "seed": str(seed)} | errors

    rows = [row("clean", s, 10 + s, 8 + s) for s in range(3)]
    rows += [row("half foreign", s, 10, 12 + s / 10) for s in range(3)]
    text = frozen.table(rows, KEY)
    assert "| four classes, clean, 5 (3) | 11.0 |" in text
    assert "9.0 (-2.0 ± 0.0)" in text
    assert "significantly worse in 1 of 2 cells (four classes, half foreign, 5), better in 1" in text
    assert "Ours against perfect: significantly worse in 2 of 2" in frozen.verdict(
        rows, KEY, "right", "perfect"
    )


def test_seeds_are_a_number_or_two():
    assert frozen.seeds_of("10-12") == [10, 11, 12]
    assert frozen.seeds_of("3") == [3]
    with pytest.raises(argparse.ArgumentTypeError):
        frozen.seeds_of("few")
