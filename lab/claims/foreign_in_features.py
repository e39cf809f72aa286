"""What of a pool belongs to the known classes, told in frozen features, and how sure: AUROC, calibration and share.

    python -m lab.claims.foreign_in_features --features DIR [--seeds 10-19] [--out foreign_in_features.csv] [--jobs 1]

DIR and the splits are those of ``lab.claims.frozen_features``, which makes the features: CIFAR-10 through
EfficientNet-Lite0, pools of 3,000 images. No foreign label is used. Ours is ``SSLClassifier.own_probability_``; beside it
stand scores that need no more: of the labels-only probe the largest probability and the energy (Liu et al. 2020), the
cosine to the nearest class mean in standardised features, and a logistic regression of labelled against pool
examples. AUROC, own against foreign, on the pool and on CIFAR-10's test set; of ours the expected calibration error
(ten bins of equal width) and the estimated own share of the pool.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lab.claims.frozen_features import SIZE, SPLITS, drawn
from lab.frozen import POOL, Task, cells_of, difference, draw_rows, frozen_options, interval, read
from lab.grid import Row, make_rows
from ssl_weighting.app.belonging import Belonging
from ssl_weighting.probe import fit_probe

CELLS = ((5, 0.5), (15, 0.1), (15, 0.25), (15, 0.5), (15, 0.75), (50, 0.5))
"""Labels a class, and the foreign share of the pool."""
KEY = ("split", "labels", "foreign", "seed")
SCORES = {
    "ours": "own_probability",
    "confidence": "probe, confidence",
    "energy": "probe, energy",
    "mean": "nearest class mean",
    "against": "labelled against pool",
}
BINS = 10


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error: mean distance of bins' mean probability and share, weighed by their examples.

    Args:
        probabilities: (n,).
        truth: (n,) bool.
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return sum(
        float((bins == one).mean() * abs(probabilities[bins == one].mean() - truth[bins == one].mean()))
        for one in np.unique(bins)
    )


def rivals(task: Task, test: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of the pool and of test examples, by name, the larger the more own."""
    known = task.given != POOL
    mean, deviation = task.features.mean(0), np.maximum(task.features.std(0), 1e-6)
    features, others = ((part - mean) / deviation for part in (task.features, test))
    labeled, labels, pool = features[known], task.given[known], features[~known]
    probe = fit_probe(labeled, labels).classifier
    centres = np.stack([_unit(labeled)[labels == one].mean(0) for one in np.unique(labels)])
    against = LogisticRegression(C=1e-3, class_weight="balanced", max_iter=1000).fit(features, known)

    def logits(x: np.ndarray) -> np.ndarray:
        found = np.asarray(probe.decision_function(x))
        return found if found.ndim == 2 else np.column_stack((-found / 2, found / 2))

    scores = {
        "confidence": lambda x: probe.predict_proba(x).max(1),
        "energy": lambda x: logsumexp(logits(x), axis=1),
        "mean": lambda x: (_unit(x) @ _unit(centres).T).max(1),
        "against": against.decision_function,
    }
    return {name: (score(pool), score(others)) for name, score in scores.items()}


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def run(folder: Path, split: str, labels: int, foreign: float, seed: int) -> list[Row]:
    """AUROC of every score, in one row."""
    dirt = int(SIZE * foreign)
    task = drawn(
        folder, split, seed, lambda truth: draw_rows(truth, len(SPLITS[split]), labels, SIZE - dirt, dirt)
    )
    test, classes = read(folder, "test_batch.npz")
    own, own_test = task.truth[task.given == POOL] >= 0, np.isin(classes, SPLITS[split])
    found = Belonging(task.features, task.given)
    scores = {"ours": (found.probability, found(test))} | rivals(task, test)
    row: Row = {}
    for name, (pool, others) in scores.items():
        row[name] = f"{roc_auc_score(own, pool):.4f}"
        row[f"{name}_test"] = f"{roc_auc_score(own_test, others):.4f}"
    error, kept = calibration_error(found.probability, own), found.probability >= 0.5
    expected = float(1 - found.probability[kept].mean())
    return [
        row
        | {
            "calibration": f"{error:.4f}",
            "share": f"{found.share:.4f}",
            "true_share": f"{own.mean():.4f}",
            "kept_foreign": f"{1 - own[kept].mean():.4f}",
            "kept_expected": f"{expected:.4f}",
        }
    ]


def table(rows: list[Row]) -> str:
    """A markdown table: AUROC on the pool of each score, ours on the test set, calibration, and the own share."""

    def mean(own: list[Row], name: str) -> float:
        return statistics.mean(float(row[name]) for row in own)

    lines = [
        f"| cell (draws) | {' | '.join(SCORES.values())} | ours, test | calibration error | own share: found, true |",
        "|---" * (len(SCORES) + 4) + "|",
    ]
    worse, errors = [], []
    for cell, own in cells_of(rows, KEY).items():
        aucs = [f"{mean(own, name):.3f}" for name in SCORES]
        calibration, half = interval([float(row["calibration"]) for row in own])
        cells = [
            f"{cell} ({len(own)})",
            *aucs,
            f"{mean(own, 'ours_test'):.3f}",
            f"{calibration:.3f} ± {half:.3f}",
        ]
        cells.append(f"{mean(own, 'share'):.2f}, {mean(own, 'true_share'):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
        errors += [abs(float(row["share"]) - float(row["true_share"])) for row in own]
        for name in [*SCORES][1:]:
            gain, width = difference(own, "ours", name)
            worse += [f"{SCORES[name]} in {cell}: {gain:+.3f} ± {width:.3f}"] if gain < 0 else []
    last = f"Ours is below {'; '.join(worse) if worse else 'none of them in any cell'}. "
    return "\n".join(
        [*lines, "", f"{last}Mean error of the share: {100 * statistics.mean(errors):.1f} points."]
    )


def main() -> None:
    """Print the table and write the CSV."""
    options = frozen_options(__doc__).parse_args()
    jobs = {
        (split, str(labels), str(foreign), str(seed)): partial(
            run, options.features, split, labels, foreign, seed
        )
        for seed in options.seeds
        for labels, foreign in CELLS
        for split in SPLITS
    }
    rows = make_rows(jobs, KEY, options)
    order = {name: place for place, name in enumerate(SPLITS)}
    rows.sort(key=lambda row: (order[str(row["split"])], int(row["labels"]), float(row["foreign"])))
    print(table(rows))


if __name__ == "__main__":
    main()
