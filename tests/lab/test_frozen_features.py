"""The table of frozen features: what is drawn, intervals, and what is said of them."""

import argparse
import math

import numpy as np
import pytest
import torch

from lab.claims import frozen_features as claim
from ssl_weighting import SSLClassifier


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 16)) * 2
    for name, count in (("data_batch_1", 600), ("test_batch", 200)):
        labels = generator.integers(0, 10, count)
        features = (centres[labels] + generator.normal(size=(count, 16))).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", features=features, labels=labels)
    return tmp_path


def test_draws_the_same_labelled_examples_for_every_pool(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 100)
    clean, dirty = (claim.draw(folder, "four classes", pool, 5, 3) for pool in claim.POOLS)
    for task in (clean, dirty):
        known = task.given != claim.POOL
        assert known.sum() == 20
        assert (~known).sum() == 100
        np.testing.assert_array_equal(task.given[known], task.truth[known])
        assert set(task.answers) == {0, 1, 2, 3}
    np.testing.assert_array_equal(clean.features[:20], dirty.features[:20])
    assert (clean.truth >= 0).all()
    assert (dirty.truth < 0).sum() == 50


def test_a_run_has_all_errors_and_perfect_weights_help(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 100)
    (row,) = claim.run(folder, "correlated", "half foreign", 5, 0)
    assert {*claim.METHODS} <= {*row}
    assert all(0 <= float(row[name]) <= 100 for name in claim.METHODS)


def test_right_only_counts_right_pseudo_labels(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 100)
    task = claim.draw(folder, "four classes", "half foreign", 5, 0)
    model = SSLClassifier(lambda x: x, lambda: claim.RightOnly(torch.from_numpy(task.truth)), 8, choose=False)
    algorithm = model.fit(task.features, task.given).module_.algorithm
    counted = (algorithm.certainty > 0).numpy()
    assert counted.any()
    np.testing.assert_array_equal(algorithm.targets.argmax(1).numpy()[counted], task.truth[counted])
    assert not counted[task.given != claim.POOL].any()


def test_intervals_are_students():
    mean, half = claim.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(claim.interval([1.0])[1])


def test_the_table_counts_cells_that_are_worse():
    def row(pool, seed, probe, ours):
        errors = dict.fromkeys(claim.METHODS, "5.0") | {"probe": str(probe), "ours": str(ours)}
        return {"split": "four classes", "pool": pool, "labels": "5", "seed": str(seed)} | errors

    rows = [row("clean", s, 10 + s, 8 + s) for s in range(3)]
    rows += [row("half foreign", s, 10, 12 + s / 10) for s in range(3)]
    text = claim.table(rows)
    assert "| four classes, clean, 5 (3) | 11.0 |" in text
    assert "9.0 (-2.0 ± 0.0)" in text
    assert "significantly worse in 1 of 2 cells (four classes, half foreign, 5)" in text


def test_seeds_are_a_number_or_two():
    assert claim.seeds_of("10-12") == [10, 11, 12]
    assert claim.seeds_of("3") == [3]
    with pytest.raises(argparse.ArgumentTypeError):
        claim.seeds_of("few")
