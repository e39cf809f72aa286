"""``ssl-weighting demo``: labels only, plain SSL and learned weights on a dirty pool, with the same labels for all."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_weighting.app.side_by_side import side_by_side
from ssl_weighting.app.threads import free_cores
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

LEARNED = "UDA, learned λ (ours)"
METHODS: dict[str, list[str]] = {
    "labels only": ["--model.algorithm", "Supervised", "--model.weighting.kind", "fixed"],
    "UDA, λ = 1": ["--model.weighting.kind", "fixed", "--model.weighting.init", "1"],
    LEARNED: [],
}
RECIPE = "demo"
FIRST_SEED = 20
"""The recipe's settings were chosen on seeds 0 to 2, and others looked at on 10 to 13: these therefore show nothing."""
LEAST = 100
"""Examples of least weight that are looked at."""


@dataclass(frozen=True)
class Found:
    """What the weights say of the pool, judged by labels that training did not see.

    Attributes:
        foreign_below: Share of the foreign examples with a weight below 1, in [0, 1].
        own_below: The same of the examples of the known classes.
        foreign_among_least: How many of the ``LEAST`` examples of least weight are foreign.
    """

    foreign_below: float
    own_below: float
    foreign_among_least: int


@dataclass(frozen=True)
class Outcome:
    """A run's test error, in [0, 1], its folder, and what its weights say, if they were learned."""

    error: float
    directory: str
    found: Found | None


def main(argv: list[str]) -> int:
    """Train every method with every seed, then print the tables and the path of the picture.

    Args:
        argv: ``--seeds N`` (default 3), ``--runs DIR`` (default ``runs``), ``--processes N``.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting demo", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds from 20 on, and so splits, a method (default 3)"
    )
    parser.add_argument(
        "--runs", type=home_path, default=Path("runs"), help="folder that run folders go into"
    )
    parser.add_argument("--processes", type=int, default=min(free_cores(), 4), help="runs side by side")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    console = Console(soft_wrap=True)
    console.print(
        "Digits 5 to 9 are known, with 20 labels in all, and all of them train in every row.\nHalf of the unlabelled "
        "pool shows 0 to 4, which belong to no class. What is done with the pool:\n"
    )
    started = time.monotonic()
    threads = max(1, free_cores() // max(1, options.processes))
    jobs = {
        (method, seed): partial(train, METHODS[method], seed, options.runs, threads)
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
        for method in METHODS
    }
    outcomes: dict[str, dict[int, Outcome]] = {method: {} for method in METHODS}
    with side_by_side(jobs, options.processes, "--processes") as ended:
        for done, ((method, seed), result) in enumerate(ended, start=1):
            outcome = outcomes[method][seed] = result.result()
            seconds = time.monotonic() - started
            console.print(
                f"  {done}/{len(jobs)}  {method:21s} seed {seed}  test error {100 * outcome.error:5.2f} %   "
                f"({seconds:.0f} s)",
                highlight=False,
            )
    errors = {method: {seed: o.error for seed, o in by_seed.items()} for method, by_seed in outcomes.items()}
    console.print(errors_table(errors))
    console.print(_differences(errors), highlight=False)
    console.print(_found_table(outcomes[LEARNED]))
    first = outcomes[LEARNED][FIRST_SEED].directory
    console.print(f"weights of seed {FIRST_SEED}: {first}/weights.png", highlight=False, markup=False)
    console.print(
        f"the images that least belong: ssl-weighting weights {first}", highlight=False, markup=False
    )
    console.print("next: ssl-weighting fit --config digits_uda   (or --help)", highlight=False)
    return 0


def train(method: list[str], seed: int, runs: Path, threads: int = 1) -> Outcome:
    """One run of the demo, in this process, which prints nothing.

    Args:
        method: Options of ``fit`` on top of the recipe's.
        seed: Of the split and of the run.
        runs: Folder that the run's folder goes into.
        threads: To compute with; another number rounds differently.
    """
    import torch

    from ssl_weighting.app.cli import run_lightning

    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()):
        directory = run_lightning(
            ["fit", "--config", RECIPE, "--seed_everything", str(seed), "--runs", str(runs), *method]
        )
    assert directory is not None
    with open(directory / "metrics.csv", newline="", encoding="utf-8") as file:
        error = [row["test/error"] for row in csv.DictReader(file) if row["test/error"]][-1]
    return Outcome(float(error), str(directory), _found(directory))


def _found(directory: Path) -> Found | None:
    """What the weights of a run say; ``None`` where they did not move or the pool has nothing foreign."""
    import numpy as np

    from ssl_weighting.app.report.weight_charts import groups_of
    from ssl_weighting.app.runs import Run

    run = Run(directory)
    groups = groups_of(run, None)
    if "foreign class" not in groups or not run.weights["updates"].to_numpy().any():
        return None
    weight, foreign = run.weights["weight"].to_numpy(), groups["foreign class"]
    own = np.logical_or.reduce([groups[name] for name in groups if name.startswith("pseudo-label")])
    least = weight.argsort(kind="stable")[:LEAST]
    return Found(
        float((weight[foreign] < 1).mean()), float((weight[own] < 1).mean()), int(foreign[least].sum())
    )


def errors_table(errors: Mapping[str, Mapping[int, float]]) -> Table:
    """Test errors in per cent, a row a method.

    Args:
        errors: Errors in [0, 1] of every method by seed.
    """
    seeds = sorted(next(iter(errors.values())))
    table = Table(title="test error in %, the same 20 labels in every row", title_justify="left")
    table.add_column("", no_wrap=True)
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean ± std", justify="right")
    for method, by_seed in errors.items():
        values = [100 * by_seed[seed] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table.add_row(method, *[f"{v:.2f}" for v in values], f"{statistics.mean(values):.2f} ± {spread:.2f}")
    return table


def _differences(errors: Mapping[str, Mapping[int, float]]) -> str:
    means = {method: 100 * statistics.mean(by_seed.values()) for method, by_seed in errors.items()}
    against = ", ".join(f"{means[LEARNED] - means[m]:+.2f} against {m}" for m in means if m != LEARNED)
    return f"learned λ, points on the mean: {against}\n"


def _found_table(outcomes: Mapping[int, Outcome]) -> Table:
    """What the learned weights say of the pool, a column a seed."""
    seeds = sorted(outcomes)
    found = [o.found for _, o in sorted(outcomes.items()) if o.found is not None]
    table = Table(title="what the learned weights found (λ = 1: nothing)", title_justify="left")
    table.add_column("", no_wrap=True)
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    rows = {
        "foreign images with a weight below 1": [f"{f.foreign_below:.0%}" for f in found],
        "own images with a weight below 1": [f"{f.own_below:.0%}" for f in found],
        f"foreign among the {LEAST} of least weight": [str(f.foreign_among_least) for f in found],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
