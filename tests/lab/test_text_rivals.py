"""Rivals on IMDB: they have the labels of the table of frozen texts, and are shown with their seconds."""

import numpy as np

from lab.claims import frozen_texts, text_rivals
from lab.frozen import POOL


def test_rivals_have_the_labels_of_frozen_texts(tmp_path):
    classes = np.random.default_rng(0).integers(0, 2, 60)
    numbers = np.arange(60, dtype=np.float32)[:, None]
    for name in ("imdb-train", "imdb-test", "newsgroups-train"):
        np.savez(tmp_path / f"{name}.npz", features=numbers, labels=classes)
    task = frozen_texts.draw(tmp_path, "imdb", "clean", 5, 11)
    texts, labels = text_rivals.labelled(([str(i) for i in range(60)], classes), 5, 11)
    known = task.given != POOL
    assert texts == [str(int(i)) for i in task.features[known, 0]]
    np.testing.assert_array_equal(labels, task.given[known])


def test_the_table_has_means():
    rows = [
        {"method": "setfit", "labels": "10", "seed": str(seed), "error": str(30 + seed), "seconds": "2"}
        for seed in range(3)
    ]
    assert text_rivals.table(rows).splitlines()[2] == "| 20 | setfit | 30.0, 31.0, 32.0 | 31.0 | 2 |"
