"""How far can λ move in the paper's runs, and how often is an example updated?

    python -m lab.claims.how_far_weights_move [--out FILE.csv] [--jobs 2]

The paper's schedules (App. E) with M-Adam itself and the runs' own streams of batches; only the influences are made up:
of one sign for each example (all that can move a weight), or drawn anew from a normal distribution at each update (noise
alone). Nothing is trained. A CSV has a row for each schedule, bias correction and kind of influence.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from lab.grid import Row, grid_options, make_rows
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


def moved(name: str, correction: BiasCorrection, influence: str) -> list[Row]:
    """Statistics of λ after the run, from 1, as one row."""
    schedule = SCHEDULES[name]
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
    row = {
        "updates_mean": counts.mean().item(),
        "never_updated": (counts == 0).float().mean().item(),
        "moved_mean": distance.mean().item(),
        "moved_q95": distance.quantile(0.95).item(),
        "moved_max": distance.max().item(),
    }
    return [{key: str(round(value, 4)) for key, value in row.items()}]


def main() -> None:
    """See the head of this file."""
    jobs = {key: partial(moved, *key) for key in product(SCHEDULES, CORRECTIONS, ("one sign", "noise"))}
    options = grid_options(__doc__).parse_args()
    for row in make_rows(jobs, ("schedule", "bias_correction", "influence"), options):
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
