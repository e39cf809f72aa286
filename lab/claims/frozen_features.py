"""Frozen features at equal labels: the labels alone, the pool with and without learned weights, and perfect weights.

    python -m lab.claims.frozen_features --embed --cifar10 DIR --encoder DIR --features DIR
    python -m lab.claims.frozen_features --features DIR [--seeds 10-19] [--out frozen_features.csv] [--jobs 1]

The first makes the features once: --cifar10 DIR holds CIFAR-10, --encoder DIR what ``python -m lab.efficientnet``
wrote. Every method has the same labels, all of which train, and a pool of 3,000 further images, clean, half or three
quarters of classes that nobody knows. Errors are of the test images of the known classes. Printed: means over the
seeds, and paired 95 % intervals (t) of each method's error less the probe's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lab.embedded_images import embed
from lab.frozen import POOL, Task, compare, draw_rows, frozen_options, read, table
from lab.grid import Row, make_rows

SPLITS = {
    "four classes": (0, 1, 6, 7),
    "six animals": (2, 3, 4, 5, 6, 7),
    "correlated": (0, 1, 2, 3, 4, 6),
}
"""Classes of CIFAR-10 that are known; the others are foreign."""
POOLS = {"clean": 0.0, "half foreign": 0.5, "three quarters foreign": 0.75}
"""Foreign share."""
LABELS, SIZE = (5, 15, 50), 3000
KEY = ("split", "pool", "labels", "seed")


def draw(folder: Path, split: str, pool: str, labels: int, seed: int) -> Task:
    """Draw labelled examples and a pool; the same labelled examples whatever the pool."""
    dirt = int(SIZE * POOLS[pool])
    return drawn(
        folder, split, seed, lambda truth: draw_rows(truth, len(SPLITS[split]), labels, SIZE - dirt, dirt)
    )


def drawn(
    folder: Path, split: str, seed: int, choose: Callable[[np.ndarray], tuple[np.ndarray, int]]
) -> Task:
    """A task of examples in a random order.

    Args:
        folder: That of the features.
        split: Which classes are known.
        seed: Of the order.
        choose: From the classes (n,), −1 of foreign examples: rows, and how many of them, the first, are labelled.
    """
    numbers = np.full(10, -1)
    numbers[list(SPLITS[split])] = range(len(SPLITS[split]))
    features, classes = read(folder, "data_batch_*.npz")
    order = np.random.default_rng(seed).permutation(len(classes))
    truth = numbers[classes[order]]
    rows, labeled = choose(truth)
    given = np.where(np.arange(len(rows)) < labeled, truth[rows], POOL)
    test, answers = read(folder, "test_batch.npz")
    answers = numbers[answers]
    return Task(features[order[rows]], given, truth[rows], test[answers >= 0], answers[answers >= 0])


def run(folder: Path, split: str, pool: str, labels: int, seed: int) -> list[Row]:
    """The errors of every method, %, in one row."""
    return [compare(draw(folder, split, pool, labels, seed))]


def main() -> None:
    """Print the table and write the CSV."""
    parser = frozen_options(__doc__)
    parser.add_argument("--embed", action="store_true", help="make the features, and nothing else")
    parser.add_argument("--cifar10", type=Path, help="with --embed: folder of CIFAR-10")
    parser.add_argument("--encoder", help="with --embed: folder of an image encoder")
    options = parser.parse_args()
    if options.embed:
        if not (options.cifar10 and options.encoder):
            parser.error("--embed needs --cifar10 and --encoder")
        torch.set_num_threads(max(1, options.jobs))
        embed(options.cifar10, options.encoder, options.features)
        return
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
