"""What tables of frozen features have in common: the rivals at equal labels, paired intervals, and what they say."""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.grid import Row, grid_options
from ssl_weighting import SSLClassifier
from ssl_weighting.algorithms.base import Survey
from ssl_weighting.algorithms.ensemble import Ensemble
from ssl_weighting.algorithms.label_propagation import LabelPropagation

METHODS = {
    "probe": "labels only",
    "propagation": "propagation, λ = 1",
    "fixed": "ensemble, λ = 1, no choice",
    "learned": "ensemble, λ learned, no choice",
    "ours": "ours",
    "own": "oracle: own only",
    "right": "oracle: right only",
}
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
        print(f"error: --features {folder}: no {pattern}", file=sys.stderr)
        raise SystemExit(2)
    return np.concatenate([f["features"] for f in files]), np.concatenate(
        [f["labels"] for f in files]
    ).astype(int)


def draw_rows(truth: np.ndarray, classes: int, labels: int, own: int, foreign: int) -> tuple[np.ndarray, int]:
    """Rows of labelled examples and, after them, of a pool; the same labelled ones whatever the pool.

    Args:
        truth: (n,), classes in a random order, −1 of foreign examples.
        classes: Number of classes.
        labels: Labels a class; a class with fewer examples gives them all.
        own: Most examples of the pool that are of the classes.
        foreign: Most foreign ones.

    Returns:
        The rows, and how many of them are labelled.
    """
    labeled = np.concatenate([np.flatnonzero(truth == c)[:labels] for c in range(classes)])
    rest = np.setdiff1d(np.arange(len(truth)), labeled)
    pool = [rest[truth[rest] >= 0][:own], rest[truth[rest] < 0][:foreign]]
    return np.concatenate([labeled, *pool]), len(labeled)


def compare(task: Task, further: Callable[[SSLClassifier, Task], dict[str, float]] | None = None) -> Row:
    """The errors of every method, %, with what ours says of itself.

    Args:
        task: What is to be learned.
        further: Errors of further methods, by name, after ours was trained.
    """
    warnings.simplefilter("ignore")
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
    own = task.truth >= 0
    errors["own"] = errors["fixed"] if own.all() else fixed(Ensemble, own)
    errors["right"] = fixed(partial(RightOnly, torch.from_numpy(task.truth.copy())))
    errors |= {} if further is None else further(ours, task)
    row: Row = {name: f"{error:.3f}" for name, error in sorted(errors.items(), key=_place)}
    return row | {
        "share": f"{ours.pool_share_:.3f}",
        "spread": f"{ours.weights_.std():.4f}",
        "seconds": f"{seconds:.1f}",
    }


def _place(item: tuple[str, float]) -> int:
    return [*METHODS].index(item[0]) if item[0] in METHODS else len(METHODS)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; of one number the width is NaN."""
    from scipy.stats import t  # slow to import

    if len(differences) < 2:
        return statistics.mean(differences), math.nan
    deviation = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), float(t.ppf(0.975, len(differences) - 1)) * deviation


def cells_of(rows: Sequence[Row], key: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by their cell's name, the parts of the key but for the seed, in order of appearance."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(", ".join(str(row[name]) for name in key[:-1]), []).append(row)
    return cells


def table(
    rows: Sequence[Row], key: Sequence[str], methods: Mapping[str, str] = METHODS, reference: str = "probe"
) -> str:
    """A markdown table of mean errors, with each method's paired difference from the reference; and what it says.

    Args:
        rows: In the order of the table.
        key: Columns that name a cell, and the seed.
        methods: Columns of errors with their titles.
        reference: The one that others are compared with.
    """
    others = [name for name in methods if name != reference]
    lines = [
        f"| labels a class | {methods[reference]} | {' | '.join(methods[name] for name in others)} |",
        "|---" * (len(others) + 2) + "|",
    ]
    for cell, own in cells_of(rows, key).items():
        line = [f"{cell} ({len(own)})", f"{statistics.mean(float(row[reference]) for row in own):.1f}"]
        for name in others:
            mean, half = difference(own, name, reference)
            line.append(f"{statistics.mean(float(row[name]) for row in own):.1f} ({mean:+.1f} ± {half:.1f})")
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, "", verdict(rows, key, reference, methods[reference])])


def difference(rows: Sequence[Row], name: str, reference: str) -> tuple[float, float]:
    """A method's error less the reference's, paired: see :func:`interval`."""
    return interval([float(row[name]) - float(row[reference]) for row in rows])


def verdict(rows: Sequence[Row], key: Sequence[str], reference: str, title: str) -> str:
    """A sentence on the cells: ours against another method, which has a title."""
    found = [(cell, *difference(own, "ours", reference)) for cell, own in cells_of(rows, key).items()]
    if not found:
        return ""
    worse = [name for name, mean, half in found if mean - half > 0]
    better = sum(mean + half < 0 for _, mean, half in found)
    worst = max(found, key=lambda cell: cell[1])
    gain = -statistics.mean(mean for _, mean, _ in found)
    said = f" ({'; '.join(worse)})" if worse else ""
    return (
        f"Ours against {title}: significantly worse in {len(worse)} of {len(found)} cells{said}, better in "
        f"{better}; mean gain {gain:.1f} points; worst cell {worst[0]}: {worst[1]:+.1f} ± {worst[2]:.1f}."
    )


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


def frozen_options(description: str | None) -> argparse.ArgumentParser:
    """Options of a script that makes such a table."""
    parser = grid_options(description)
    parser.add_argument("--features", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("10-19"), help="default: 10-19")
    return parser
