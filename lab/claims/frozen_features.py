"""Frozen features at equal labels: the labels alone, the pool with and without learned weights, and perfect weights.

    python -m lab.claims.frozen_features --features DIR [--seeds 10-19] [--out frozen_features.csv] [--jobs 1]

DIR holds ``data_batch_*.npz`` and ``test_batch.npz``: ``features`` (n, D) float32 of CIFAR-10's images by a frozen
encoder, and ``labels`` (n,). Every method has the same labels, all of which train, and a pool of 3,000 further images,
clean or half of classes that nobody knows. Errors are of the test images of the known classes. Printed: means over the
seeds, and paired 95 % intervals (t) of each method's error less the probe's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from lab.frozen import POOL, Task, compare, draw_rows, frozen_options, read, table
from lab.grid import Row, make_rows

SPLITS = {
    "four classes": (0, 1, 6, 7),
    "six animals": (2, 3, 4, 5, 6, 7),
    "correlated": (0, 1, 2, 3, 4, 6),
}
"""Classes of CIFAR-10 that are known; the others are foreign."""
POOLS, LABELS, SIZE = ("clean", "half foreign"), (5, 15, 50), 3000
KEY = ("split", "pool", "labels", "seed")


def draw(folder: Path, split: str, pool: str, labels: int, seed: int) -> Task:
    """Draw labelled examples and a pool; the same labelled examples whatever the pool."""
    known = SPLITS[split]
    numbers = np.full(10, -1)
    numbers[list(known)] = range(len(known))
    features, classes = read(folder, "data_batch_*.npz")
    order = np.random.default_rng(seed).permutation(len(classes))
    truth = numbers[classes[order]]
    dirt = SIZE // 2 if pool == "half foreign" else 0
    rows, labeled = draw_rows(truth, len(known), labels, SIZE - dirt, dirt)
    given = np.where(np.arange(len(rows)) < labeled, truth[rows], POOL)
    test, answers = read(folder, "test_batch.npz")
    answers = numbers[answers]
    return Task(features[order[rows]], given, truth[rows], test[answers >= 0], answers[answers >= 0])


def run(folder: Path, split: str, pool: str, labels: int, seed: int) -> list[Row]:
    """The errors of every method, %, in one row."""
    return [compare(draw(folder, split, pool, labels, seed))]


def main() -> None:
    """Print the table and write the CSV."""
    options = frozen_options(__doc__).parse_args()
    jobs = {
        (split, pool, str(labels), str(seed)): partial(run, options.features, split, pool, labels, seed)
        for seed in options.seeds
        for labels in LABELS
        for split in SPLITS
        for pool in POOLS
    }
    rows = make_rows(jobs, KEY, options)
    order = {name: place for place, name in enumerate((*SPLITS, *POOLS, *map(str, LABELS)))}
    rows.sort(key=lambda row: [order[str(row[name])] for name in KEY[:3]])
    print(table(rows, KEY))


if __name__ == "__main__":
    main()
