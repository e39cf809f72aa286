"""The demo on further seeds, and beside it a plainer use of the labels.

    python -m lab.claims.demo_seeds --seeds 5 --out docs/results/demo.csv [--jobs 2]

The recipe `demo` and its rows, and a logistic regression, which knows nothing of the pool: the same labels for all.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from lab.grid import Row, grid_options, make_rows
from ssl_weighting.app.demo import FIRST_SEED, METHODS, errors_table, train
from ssl_weighting.app.recipes import find_recipe, read_recipe
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.source import ExampleSet

PIXELS = "logistic regression on the pixels"
ARMS = METHODS | {PIXELS: []}


def run(arm: str, seed: int) -> list[Row]:
    """The row of one run, but for its key."""
    if arm == PIXELS:
        return [{"test_error": f"{pixels_error(seed):.4f}"}]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        outcome = train(ARMS[arm], seed, Path(runs))
    row = {"test_error": f"{outcome.error:.4f}", "seconds": f"{time.perf_counter() - began:.0f}"}
    if (found := outcome.found) is not None:
        row |= {"foreign_below": f"{found.foreign_below:.4f}", "own_below": f"{found.own_below:.4f}"}
        row |= {"foreign_among_least": str(found.foreign_among_least)}
    return [row]


def pixels_error(seed: int) -> float:
    """Test error of a logistic regression on the labelled images' pixels, in [0, 1]."""
    given: dict[str, Any] = read_recipe(find_recipe("demo"))["data"]["init_args"]
    data = Digits(**given, split_seed=seed)
    data.setup()
    (x, y), (test_x, test_y) = (_pixels(data.sets[part]) for part in ("labeled", "test"))
    return 1 - float(LogisticRegression(max_iter=2000).fit(x, y).score(test_x, test_y))


def _pixels(examples: ExampleSet) -> tuple[np.ndarray, np.ndarray]:
    batch = examples.__getitems__(range(len(examples)))
    return batch.inputs.flatten(1).numpy() / 255, examples.labels.numpy()


def main() -> None:
    """Make the rows that are missing, and print the table."""
    parser = grid_options(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = {(arm, str(seed)): partial(run, arm, seed) for seed in seeds for arm in ARMS}
    rows = make_rows(jobs, ("arm", "seed"), options)
    errors: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    for row in rows:
        errors[row["arm"]][int(row["seed"])] = float(row["test_error"])
    Console(soft_wrap=True).print(errors_table(errors))


if __name__ == "__main__":
    main()
