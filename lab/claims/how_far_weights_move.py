"""How far can λ move in the paper's runs, and how often is an example updated?

    python -m lab.claims.how_far_weights_move [--out FILE.csv]

The paper's schedules (App. E) with M-Adam itself and the runs' own streams of batches; only the influences are made up:
of one sign for each example (all that can move a weight), or drawn anew from a normal distribution at each update (noise
alone). Nothing is trained. A CSV has a row for each schedule, bias correction and kind of influence.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch

from ssl_weighting.data import Stream
from ssl_weighting.weighting import ExampleWeights
from ssl_weighting.weighting.rules import BiasCorrection, make_rule


class Schedule(NamedTuple):
    """|U|, Λ steps of a run, and examples in each; η is 0.01 in all."""

    size: int
    steps: int
    batch: int


SCHEDULES = {
    "FixMatch, CIFAR-10": Schedule(48_976, 2**20 // 512, 448),
    "UDA, CIFAR-10": Schedule(48_976, (400_000 - 20_000) // 100, 320),
    "UDA, IMDB": Schedule(69_972, 1_800, 32),
}
CORRECTIONS: tuple[BiasCorrection, ...] = ("global", "per_example")


def moved(schedule: Schedule, correction: BiasCorrection, influence: str) -> dict[str, float]:
    """Statistics of λ after the run, from 1."""
    draw = torch.Generator().manual_seed(0)
    rule = make_rule("masked_adam", 0.01, correction)
    weights = ExampleWeights(schedule.size, rule, bounds=(-float("inf"), float("inf")))
    counts = torch.zeros(schedule.size)
    stream = Stream(schedule.size, schedule.batch, 0, "influence")
    for step in range(schedule.steps):
        rows = stream.batch(step)
        values = torch.randn(len(rows), generator=draw)
        if influence == "one sign":
            values = values.abs() * (1 - 2 * (rows % 2))
        weights.step(rows, values)
        counts[rows] += 1
    distance = (weights.column("values") - 1).abs()
    return {
        "updates_mean": counts.mean().item(),
        "never_updated": (counts == 0).float().mean().item(),
        "moved_mean": distance.mean().item(),
        "moved_q95": distance.quantile(0.95).item(),
        "moved_max": distance.max().item(),
    }


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV")
    options = parser.parse_args()
    rows = [
        {"schedule": name, "bias_correction": correction, "influence": influence}
        | {key: round(value, 4) for key, value in moved(schedule, correction, influence).items()}
        for name, schedule in SCHEDULES.items()
        for correction in CORRECTIONS
        for influence in ("one sign", "noise")
    ]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out is not None:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
