"""Fifty Λ steps on real CIFAR-10 with every inverse Hessian and scope, chosen as a user would: one option.

    python -m lab.claims.solvers_on_cifar10 --root DIR [--json FILE] [--jobs 2]

DIR holds cifar-10-batches-py (its checksum is not looked at). A small conv net and small batches, so that all of them
take minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

STEPS = 50
SOLVERS: dict[str, list[list[str]]] = {
    "ExactLastLayer": [[]],
    **{
        name: [["--model.influence.scope", scope] for scope in ("last_layer", "last_block", "all")]
        for name in ("Identity", "Neumann", "ConjugateGradient", "LiSSA", "Larsen", "TruncatedUnroll")
    },
}


def run(root: str, solver: str, options: list[str]) -> dict[str, Any]:
    """One run of the command. Returns what its metrics.csv says of the influences."""
    import torch

    from ssl_weighting.app.cli import run_lightning

    torch.set_num_threads(1)
    arguments = [
        *("fit", "--config", "cifar10_uda", "--data.root", root, "--data.verify_checksum", "false"),
        *(
            "--data.evaluate_test",
            "false",
            "--data.labeled_batch_size",
            "16",
            "--data.unlabeled_batch_size",
            "32",
        ),
        *(
            "--data.validation_batch_size",
            "64",
            "--model.backbone",
            "SmallConvNet",
            "--model.weighting.warmup_steps",
            "0",
        ),
        *(
            "--model.backbone.channels",
            "[16,32]",
            "--model.weighting.inner_steps",
            "1",
            "--model.weighting.update_masked",
            "true",
        ),
        *(
            "--model.theta.ema_decay",
            "0.9",
            "--trainer.max_steps",
            str(STEPS),
            "--trainer.val_check_interval",
            str(STEPS),
        ),
        *("--trainer.limit_test_batches", "1", "--model.influence", solver, *options),
    ]
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        directory = run_lightning([*arguments, "--runs", runs])
        seconds = time.perf_counter() - start
        assert directory is not None
        with open(directory / "metrics.csv", newline="", encoding="utf-8") as file:
            steps = [row for row in csv.DictReader(file) if row["influence/std"]]
    values = [float(row[key]) for row in steps for key in ("influence/mean", "influence/std")]
    return {
        "solver": solver,
        "scope": options[-1] if options else "last_layer",
        "lambda_steps": len(steps),
        "finite": all(abs(v) < float("inf") for v in values),
        "median_influence_std": sorted(values[1::2])[len(steps) // 2],
        "seconds": seconds,
    }


def main() -> None:
    """Run them all and print a table."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(run, options.root, solver, scope): (solver, scope)
            for solver, scopes in SOLVERS.items()
            for scope in scopes
        }
        for future in as_completed(futures):
            try:
                row = future.result()
            except Exception as error:
                row = {"solver": futures[future][0], "scope": futures[future][1][-1:], "error": str(error)}
            rows.append(row)
            print(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                flush=True,
            )
    if options.json:
        options.json.write_text(
            json.dumps(sorted(rows, key=lambda r: (r["solver"], str(r["scope"]))), indent=1)
        )


if __name__ == "__main__":
    main()
