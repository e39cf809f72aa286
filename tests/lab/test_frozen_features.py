"""The table of frozen features of images: what is drawn, and its rows."""

import numpy as np

from lab.claims import frozen_features as claim
from lab.frozen import METHODS, POOL


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
