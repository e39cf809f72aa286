"""``ssl-weighting demo``: supervised, plain SSL and per-example weights on a dirty pool, same splits and seeds."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_weighting.app.side_by_side import side_by_side
from ssl_weighting.app.threads import free_cores
from ssl_weighting.files import home_path

METHODS: dict[str, list[str]] = {
    "supervised": ["--model.algorithm", "Supervised", "--model.weighting.kind", "fixed"],
    "fixed λ = 1": ["--model.weighting.kind", "fixed", "--model.weighting.init", "1"],
    "per-example λ": [],
}
RECIPE = "demo"


def main(argv: list[str]) -> int:
    """Train every method with every seed, then print the table and the path of the picture.

    Args:
        argv: ``--seeds N`` (default 3), ``--runs DIR`` (default ``runs``), ``--processes N``.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3, help="seeds, and so splits, a method (default 3)")
    parser.add_argument(
        "--runs", type=home_path, default=Path("runs"), help="folder that run folders go into"
    )
    parser.add_argument("--processes", type=int, default=min(free_cores(), 4), help="runs side by side")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    console.print(
        "Digits 5 to 9 are known, with 10 labels in all. Half of the unlabelled pool shows 0 to 4, which belong to no "
        "class.\nThree ways to use that pool, on the same splits:\n"
    )
    started = time.monotonic()
    jobs = {
        (method, seed): partial(_train, method, seed, options.runs, options.processes)
        for seed in range(options.seeds)
        for method in METHODS
    }
    errors: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    picture = ""
    with side_by_side(jobs, options.processes, "--processes") as ended:
        for done, ((method, seed), result) in enumerate(ended, start=1):
            error, directory = result.result()
            errors[method][seed] = error
            if method == "per-example λ" and seed == 0:
                picture = f"{directory}/weights.png"
            seconds = time.monotonic() - started
            console.print(
                f"  {done}/{len(jobs)}  {method:14s} seed {seed}  test error {100 * error:5.2f} %   ({seconds:.0f} s)",
                highlight=False,
            )
    console.print(_table(errors))
    console.print(f"weights of seed 0: {picture}", highlight=False, markup=False)
    console.print("next: ssl-weighting fit --config digits_uda   (or --help)", highlight=False)
    return 0


def _train(method: str, seed: int, runs: Path, processes: int) -> tuple[float, str]:
    """One run in a worker process. Returns its test error and folder."""
    import torch

    from ssl_weighting.app.cli import run_lightning

    torch.set_num_threads(max(1, free_cores() // processes))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        directory = run_lightning(
            ["fit", "--config", RECIPE, "--seed_everything", str(seed), "--runs", str(runs), *METHODS[method]]
        )
    assert directory is not None
    with open(directory / "metrics.csv", newline="", encoding="utf-8") as file:
        error = [row["test/error"] for row in csv.DictReader(file) if row["test/error"]][-1]
    return float(error), str(directory)


def _table(errors: dict[str, dict[int, float]]) -> Table:
    seeds = sorted(next(iter(errors.values())))
    table = Table(title="test error in %", title_justify="left")
    table.add_column("")
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean ± std", justify="right")
    for method, by_seed in errors.items():
        values = [100 * by_seed[seed] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table.add_row(method, *[f"{v:.2f}" for v in values], f"{statistics.mean(values):.2f} ± {spread:.2f}")
    return table
