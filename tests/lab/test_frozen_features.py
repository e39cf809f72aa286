"""The table of frozen features of images: what is drawn, and its rows."""

import numpy as np
import pytest

from lab.claims import frozen_features as claim
from lab.frozen import METHODS, POOL


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
    clean, dirty, dirtier = (claim.draw(folder, "four classes", pool, 5, 3) for pool in claim.POOLS)
    for task in (clean, dirty, dirtier):
        known = task.given != POOL
        assert known.sum() == 20
        assert (~known).sum() == 100
        np.testing.assert_array_equal(task.given[known], task.truth[known])
        assert set(task.answers) == {0, 1, 2, 3}
    for task in (dirty, dirtier):
        np.testing.assert_array_equal(clean.features[:20], task.features[:20])
    assert [(task.truth < 0).sum() for task in (clean, dirty, dirtier)] == [0, 50, 75]


def test_a_run_has_all_errors(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 100)
    (row,) = claim.run(folder, "correlated", "half foreign", 5, 0)
    assert {*METHODS} <= {*row}
    assert all(0 <= float(row[name]) <= 100 for name in METHODS)
