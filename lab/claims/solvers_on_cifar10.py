"""Fifty Λ steps on real CIFAR-10 with every inverse Hessian and scope, chosen as a user would: one option.

    python -m lab.claims.solvers_on_cifar10 --root DIR [--json FILE] [--jobs 2]

DIR holds cifar-10-batches-py (its checksum is not looked at). A small conv net and small batches, so that all of them
take minutes on two cores.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product

import numpy as np

from lab.grid import Row, grid_options, make_rows
from lab.records import metrics_of_fit

STEPS = 50
SCOPES = ("all", "last_block", "last_layer")
SCOPED = ("ConjugateGradient", "Identity", "Larsen", "LiSSA", "Neumann", "TruncatedUnroll")
RUNS = [("ExactLastLayer", "last_layer"), *product(SCOPED, SCOPES)]
OPTIONS = (
    f"--config cifar10_uda --data.verify_checksum false --data.evaluate_test false --data.labeled_batch_size 16 "
    f"--data.unlabeled_batch_size 32 --data.validation_batch_size 64 --model.backbone SmallConvNet "
    f"--model.backbone.channels [16,32] --model.weighting.warmup_steps 0 --model.weighting.inner_steps 1 "
    f"--model.weighting.update_masked true --model.theta.ema_decay 0.9 --trainer.max_steps {STEPS} "
    f"--trainer.val_check_interval {STEPS} --trainer.limit_test_batches 1"
)


def run(root: str, solver: str, scope: str) -> list[Row]:
    """What the metrics of one run of the command say of the influences, as one row."""
    options = [*OPTIONS.split(), "--data.root", root, "--model.influence", solver]
    if solver in SCOPED:
        options += ["--model.influence.scope", scope]
    start = time.perf_counter()
    metrics = metrics_of_fit(options)
    seconds = time.perf_counter() - start
    mean, std = (metrics[f"influence/{name}"][1] for name in ("mean", "std"))
    return [
        {
            "lambda_steps": len(std),
            "finite": bool(np.isfinite([mean, std]).all()),
            "median_influence_std": sorted(std.tolist())[len(std) // 2],
            "seconds": seconds,
        }
    ]


def main() -> None:
    """Run them all and print a table."""
    parser = grid_options(__doc__, "--json")
    parser.add_argument("--root", required=True)
    options = parser.parse_args()
    jobs = {key: partial(run, options.root, *key) for key in RUNS}
    for row in make_rows(jobs, ("solver", "scope"), options):
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
