"""Are wrong labels among the most doubtful ones? Of few labels some are flipped, and told by a probe without them.

    python -m lab.claims.wrong_labels [--seeds 5] [--features DIR]

100 labels, as many of each class, of digits (pixels) and, where --features DIR holds what ``python -m
lab.claims.frozen_features --embed`` wrote, of CIFAR-10; ten of them are given another class, drawn at random. Printed, a
row a seed: how many of the ten are among the ten least probable labels, cross-validated; how many labels another class
has 90 % of, and how many of these are wrong; and how many where no label is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from lab.frozen import read
from ssl_weighting.app.baseline import standardised
from ssl_weighting.app.findings import DOUBTFUL, Doubts, doubts
from ssl_weighting.probe import fit_probe

LABELS, WRONG, CLASSES = 100, 10, 10


def drawn(features: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, D) of labelled examples, their true labels (n,), and labels of which ``WRONG`` are others."""
    draw = np.random.default_rng(seed)
    each = [draw.permutation(np.flatnonzero(classes == c))[: LABELS // CLASSES] for c in range(CLASSES)]
    rows = np.concatenate(each)
    true, given = classes[rows], classes[rows].copy()
    flipped = draw.permutation(LABELS)[:WRONG]
    given[flipped] = (given[flipped] + draw.integers(1, CLASSES, WRONG)) % CLASSES
    return standardised(features[rows]), true, given


def ranked(features: np.ndarray, labels: np.ndarray) -> Doubts:
    """Labels by what the probe without them makes of them."""
    held_out = fit_probe(features, labels).held_out
    assert held_out is not None
    return doubts(held_out, labels)


def table(name: str, features: np.ndarray, classes: np.ndarray, seeds: int) -> None:
    """Print a row a seed, and the share of the wrong labels that are among as many most doubtful ones."""
    shares = []
    print(f"{name}\nseed  wrong among the {WRONG} first  another class {DOUBTFUL:.0%}, wrong  no label wrong")
    for seed in range(seeds):
        inputs, true, given = drawn(features, classes, seed)
        found, clean = ranked(inputs, given), ranked(inputs, true)
        wrong = (given != true)[found.rows]
        sure = found.other >= DOUBTFUL
        shares.append(wrong[:WRONG].mean())
        counts = f"{int(sure.sum())}, {int((sure & wrong).sum())}"
        print(
            f"{seed:4}  {int(wrong[:WRONG].sum()):>22}  {counts:>24}  {int((clean.other >= DOUBTFUL).sum()):>14}"
        )
    print(
        f"share of the wrong ones among the {WRONG} first: {np.mean(shares):.2f}; by chance {WRONG / LABELS:.2f}\n"
    )


def main(argv: list[str]) -> int:
    """Print the tables; returns the exit status, 0."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims.wrong_labels", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many draws; default: 5")
    parser.add_argument(
        "--features", type=Path, help="folder of CIFAR-10's features; without it, digits alone"
    )
    options = parser.parse_args(argv)
    pixels, digits = load_digits(return_X_y=True)
    table("digits, pixels", pixels, digits, options.seeds)
    if options.features is not None:
        features, classes = read(options.features, "data_batch_*.npz")
        table("CIFAR-10, frozen features", features, classes, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
