"""Every SSL method on real CIFAR-10 for some hundred steps: supervised, and each with fixed and per-example weights.

    python benchmarks/methods_on_cifar10.py --root DIR --out methods_on_cifar10.csv [--seeds 3] [--steps 800] [--jobs 2]

DIR holds cifar-10-batches-py (its checksum is not looked at). The same small conv net, labels, batches and number of θ
steps for all; each method's own losses and coefficients. Finished rows of the CSV are skipped, so that a killed study
goes on; with all rows there, it prints the table and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import shlex
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

METHODS: dict[str, list[str]] = {
    "supervised": ["--model.algorithm", "Supervised"],
    "pseudo_label": ["--model.algorithm", "PseudoLabel"],
    "vat": ["--model.algorithm", "VAT"],
    "mean_teacher": ["--model.algorithm", "MeanTeacher"],
    "mixmatch": ["--model.algorithm", "MixMatch"],
    "uda": ["--model.algorithm", "UDA"],
    "remixmatch": ["--model.algorithm", "ReMixMatch", "--model.algorithm.num_strong", "2"],
    "fixmatch": ["--model.algorithm", "FixMatch"],
    "flexmatch": ["--model.algorithm", "FlexMatch"],
    "freematch": ["--model.algorithm", "FreeMatch"],
    "softmatch": ["--model.algorithm", "SoftMatch"],
}
# The same influence for all: damped enough for the distances that are not convex.
COMMON = shlex.split("""
    --data.verify_checksum false --data.evaluate_test false --data.num_labeled 500 --data.labeled_batch_size 32
    --data.unlabeled_batch_size 64 --data.validation_batch_size 128 --data.normalise_by range
    --model.backbone SmallConvNet --model.backbone.channels [16,32,64] --trainer.precision bf16-mixed
    --model.schedule cosine_7_16 --model.decay_all false --model.ema_decay 0.98 --model.inner_steps 5
    --model.influence.damping reference_code --model.weight_optimizer sgd --model.weight_lr 0.5
""")
COLUMNS = ["method", "weighting", "seed", "steps", "test_error"]


def run(root: str, method: str, weighting: str, seed: int, steps: int) -> float:
    """The test error of one run."""
    import torch

    from ssl_weighting.cli import run_lightning

    torch.set_num_threads(1)
    arguments = [
        "fit", "--config", "cifar10_uda", "--seed_everything", str(seed), "--data.root", root, *COMMON,
        "--model.warmup_steps", str(steps // 6), "--model.weighting", weighting,
        "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps), *METHODS[method],
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        directory = run_lightning([*arguments, "--runs", runs])
        assert directory is not None
        with open(directory / "metrics.csv", newline="", encoding="utf-8") as file:
            return float([row["test/error"] for row in csv.DictReader(file) if row["test/error"]][-1])


def table(rows: list[dict[str, str]]) -> str:
    """Mean ± standard deviation over seeds, in per cent, as Markdown."""
    lines = ["| method | fixed λ = 1 | per-example λ | seeds |", "|---|---|---|---|"]
    for method in METHODS:
        cells = []
        for weighting in ("fixed", "per_example"):
            errors = [
                100 * float(r["test_error"])
                for r in rows
                if (r["method"], r["weighting"]) == (method, weighting)
            ]
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            cells.append(f"{statistics.mean(errors):.2f} ± {spread:.2f}" if errors else "")
        seeds = len({r["seed"] for r in rows if r["method"] == method})
        lines.append(f"| {method} | {cells[0]} | {cells[1]} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    def rows() -> list[dict[str, str]]:
        if not options.out.exists():
            return []
        with open(options.out, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["steps"]) == options.steps]

    if not options.out.exists():
        options.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    done = {(row["method"], row["weighting"], int(row["seed"])) for row in rows()}
    jobs = [
        (method, weighting, seed)
        for seed in range(options.seeds)
        for method in METHODS
        for weighting in (["fixed"] if method == "supervised" else ["fixed", "per_example"])
        if (method, weighting, seed) not in done
    ]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, options.root, *job, options.steps): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            method, weighting, seed = futures[future]
            error = future.result()
            with open(options.out, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([method, weighting, seed, options.steps, f"{error:.4f}"])
            print(f"{number}/{len(jobs)}  {method} {weighting} seed {seed}: {100 * error:.2f} %", flush=True)
    print(table(rows()))


if __name__ == "__main__":
    main()
