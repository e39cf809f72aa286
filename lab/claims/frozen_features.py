"""Frozen features at equal labels: the labels alone, the pool with and without learned weights, and perfect weights.

    python -m lab.claims.frozen_features --features DIR [--seeds 10-19] [--out frozen_features.csv] [--jobs 1]

DIR holds ``data_batch_*.npz`` and ``test_batch.npz``: ``features`` (n, D) float32 of CIFAR-10's images by a frozen
encoder, and ``labels`` (n,). Every method has the same labels, all of which train, and a pool of 3,000 further images,
clean or half of classes that nobody knows. Errors are of the test images of the known classes. Printed: means over the
seeds, and paired 95 % intervals (t) of each method's error less the probe's.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.grid import Row, grid_options, make_rows
from ssl_weighting import SSLClassifier
from ssl_weighting.algorithms.base import Survey
from ssl_weighting.algorithms.ensemble import Ensemble
from ssl_weighting.algorithms.label_propagation import LabelPropagation

SPLITS = {
    "four classes": (0, 1, 6, 7),
    "six animals": (2, 3, 4, 5, 6, 7),
    "correlated": (0, 1, 2, 3, 4, 6),
}
"""Classes of CIFAR-10 that are known; the others are foreign."""
POOLS, LABELS, SIZE = ("clean", "half foreign"), (5, 15, 50), 3000
METHODS = {
    "probe": "labels only",
    "propagation": "propagation, λ = 1",
    "fixed": "ensemble, λ = 1, no choice",
    "learned": "ensemble, λ learned, no choice",
    "ours": "ours",
    "own": "oracle: own only",
    "right": "oracle: right only",
}
KEY = ("split", "pool", "labels", "seed")
POOL = -1


class RightOnly(Ensemble):
    """An ensemble that somebody told which of its pseudo-labels are right; the others count 0.

    Args:
        truth: (|U|,) int64, classes; −1 of foreign examples.
    """

    def __init__(self, truth: Tensor) -> None:
        super().__init__()
        self.truth = truth

    def survey(self, seen: Survey) -> None:
        """See :meth:`Algorithm.survey`."""
        super().survey(seen)
        right = (self.targets.argmax(1) == self.truth) & (self.certainty > 0)
        self.certainty *= right
        self.certainty /= self.certainty.mean().clamp(min=1e-12)


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        features: (n, D), labelled examples first.
        given: (n,) labels, −1 for the pool.
        truth: (n,), −1 of foreign examples.
        test: Features (m, D) of test examples.
        answers: (m,), their classes.
    """

    features: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    test: np.ndarray
    answers: np.ndarray

    def error(self, predicted: np.ndarray) -> float:
        """Test error, %, of predicted classes (m,)."""
        return float((predicted != self.answers).mean() * 100)


def read(folder: Path, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all files of a pattern.

    Raises:
        SystemExit: 2, if there are none.
    """
    files = [np.load(path) for path in sorted(folder.glob(pattern))]
    if not files:
        print(f"error: --features {folder}: no {pattern}")
        raise SystemExit(2)
    return np.concatenate([f["features"] for f in files]), np.concatenate(
        [f["labels"] for f in files]
    ).astype(int)


def draw(folder: Path, split: str, pool: str, labels: int, seed: int) -> Task:
    """Draw labelled examples and a pool; the same labelled examples whatever the pool."""
    known = SPLITS[split]
    numbers = np.full(10, -1)
    numbers[list(known)] = range(len(known))
    features, classes = read(folder, "data_batch_*.npz")
    order = np.random.default_rng(seed).permutation(len(classes))
    truth = numbers[classes[order]]
    labeled = np.concatenate([np.flatnonzero(truth == c)[:labels] for c in range(len(known))])
    rest = np.setdiff1d(np.arange(len(truth)), labeled)
    own, foreign = rest[truth[rest] >= 0], rest[truth[rest] < 0]
    dirt = SIZE // 2 if pool == "half foreign" else 0
    rows = np.concatenate([labeled, own[: SIZE - dirt], foreign[:dirt]])
    given = np.where(np.arange(len(rows)) < len(labeled), truth[rows], POOL)
    test, answers = read(folder, "test_batch.npz")
    answers = numbers[answers]
    return Task(features[order[rows]], given, truth[rows], test[answers >= 0], answers[answers >= 0])


def run(folder: Path, split: str, pool: str, labels: int, seed: int) -> list[Row]:
    """The errors of every method, %, in one row."""
    warnings.simplefilter("ignore")
    task = draw(folder, split, pool, labels, seed)
    started = time.process_time()
    ours = SSLClassifier().fit(task.features, task.given)
    seconds = time.process_time() - started
    errors: dict[str, float] = {
        "probe": task.error(ours.baseline_.probabilities(ours._standardised(task.test)).argmax(1)),
        "ours": task.error(ours.predict(task.test)),
        "learned": task.error(ours.pool_probabilities(task.test).argmax(1)),
    }

    features = ours.axes_(ours._standardised(task.features))

    def fixed(algorithm: Callable[[], Any], kept: np.ndarray | None = None) -> float:
        rows = slice(None) if kept is None else kept
        model = copy.copy(ours).set_params(algorithm=algorithm)
        model.module_ = model._trained(features[rows], task.given[rows], learns=False)
        return task.error(model.pool_probabilities(task.test).argmax(1))

    errors["propagation"] = fixed(LabelPropagation)
    errors["fixed"] = fixed(Ensemble)
    errors["own"] = fixed(Ensemble, task.truth >= 0) if pool == "half foreign" else errors["fixed"]
    errors["right"] = fixed(partial(RightOnly, torch.from_numpy(task.truth.copy())))
    row: Row = {name: f"{errors[name]:.3f}" for name in METHODS}
    row |= {
        "share": f"{ours.pool_share_:.3f}",
        "spread": f"{ours.weights_.std():.4f}",
        "seconds": f"{seconds:.1f}",
    }
    return [row]


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; of one number the width is NaN."""
    from scipy.stats import t  # slow to import

    if len(differences) < 2:
        return statistics.mean(differences), math.nan
    deviation = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), float(t.ppf(0.975, len(differences) - 1)) * deviation


def table(rows: list[Row], reference: str = "probe") -> str:
    """A markdown table of mean errors, with each method's paired difference from the reference; and what it says."""
    others = [name for name in METHODS if name != reference]
    lines = [
        f"| labels a class | {METHODS[reference]} | {' | '.join(METHODS[name] for name in others)} |",
        "|---" * (len(others) + 2) + "|",
    ]
    found: list[tuple[str, float, float]] = []
    cells = dict.fromkeys((row["split"], row["pool"], str(row["labels"])) for row in rows)
    for cell in cells:
        own = [row for row in rows if (row["split"], row["pool"], str(row["labels"])) == cell]
        line = [
            f"{', '.join(cell)} ({len(own)})",
            f"{statistics.mean(float(row[reference]) for row in own):.1f}",
        ]
        for name in others:
            mean, half = interval([float(row[name]) - float(row[reference]) for row in own])
            line.append(f"{statistics.mean(float(row[name]) for row in own):.1f} ({mean:+.1f} ± {half:.1f})")
            if name == "ours":
                found.append((", ".join(cell), mean, half))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, "", *verdict(found)])


def verdict(found: Sequence[tuple[str, float, float]]) -> list[str]:
    """Sentences on the cells, each with the mean difference of ours and half its interval's width."""
    if not found:
        return []
    worse = [name for name, mean, half in found if mean - half > 0]
    worst = max(found, key=lambda cell: cell[1])
    gain = -statistics.mean(mean for _, mean, _ in found)
    said = f" ({'; '.join(worse)})" if worse else ""
    return [
        f"Ours against labels only: significantly worse in {len(worse)} of {len(found)} cells{said}; mean gain "
        f"{gain:.1f} points; worst cell {worst[0]}: {worst[1]:+.1f} ± {worst[2]:.1f}."
    ]


def seeds_of(text: str) -> list[int]:
    """``10-19`` or ``3`` as numbers.

    Raises:
        ArgumentTypeError: If it is neither.
    """
    first, _, last = text.partition("-")
    try:
        return list(range(int(first), int(last or first) + 1))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give a number, or two such as 10-19") from None


def main() -> None:
    """Print the table and write the CSV."""
    parser = grid_options(__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("10-19"), help="default: 10-19")
    options = parser.parse_args()
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
    print(table(rows))


if __name__ == "__main__":
    main()
