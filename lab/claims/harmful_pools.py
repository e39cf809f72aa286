"""λ's own share at equal labels: a method that trusts every pseudo-label, on pools that harm it, three ways to weigh.

    python -m lab.claims.harmful_pools --features DIR [--seeds 10-19] [--out harmful_pools.csv] [--jobs 1]

DIR as for lab.claims.frozen_features. Six animals of CIFAR-10 are known, 15 labels a class, all of which train; UDA
without a threshold sharpens (T = 0.5) what a weakly decayed head says of 2,000 images, of which half are vehicles; in the
second pool three of the six animals are missing as well. Weights are learned on the labelled examples, each left out in
turn. That λ = 1 is to do harm decided on the head's decay, on seed 0; damping was chosen on seeds 0 to 2.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import nn

from lab.claims.frozen_features import SPLITS, drawn
from lab.frozen import POOL, Task, cells_of, difference, draw_rows, frozen_options
from lab.grid import Row, make_rows
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.app.heads import Axes, BoundedNewton
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.probe import fit_probe
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

SPLIT = "six animals"
POOLS, LABELS, SIZE = ("half foreign", "half foreign, classes missing"), 15, 2000
MISSING = (3, 4, 5)
"""Numbers, among the known ones, of the classes that the second pool lacks."""
AXES, DECAY, STEPS, BOUND = 128, 0.02, 150, 2.0
ARMS: dict[str, dict[str, Any]] = {
    "fixed": {"kind": "fixed"},
    "per_example": {"kind": "per_example", "lr": 0.1},
    "evidence": {"kind": "evidence", "lr": 0.1},
}
TITLES = {"probe": "labels only", "fixed": "λ = 1", "per_example": "λ each", "evidence": "λ by evidence"}
KEY = ("pool", "seed")


def draw(folder: Path, pool: str, seed: int) -> Task:
    """Draw labelled examples and a pool; the same labelled examples whatever the pool."""

    def choose(truth: np.ndarray) -> tuple[np.ndarray, int]:
        rows, labeled = draw_rows(truth, len(SPLITS[SPLIT]), LABELS, len(truth), SIZE // 2)
        others = rows[labeled:]
        own, foreign = others[truth[others] >= 0], others[truth[others] < 0]
        if pool != POOLS[0]:
            own = own[~np.isin(truth[own], MISSING)]
        return np.concatenate((rows[:labeled], own[: SIZE - len(foreign)], foreign)), labeled

    return drawn(folder, SPLIT, seed, choose)


def run(folder: Path, pool: str, seed: int) -> list[Row]:
    """Errors, %, of the labels alone and of each way to weigh, and how weights rank own examples, in one row."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    task = draw(folder, pool, seed)
    mean, deviation = task.features.mean(0), task.features.std(0)
    deviation[deviation < 1e-6] = 1.0
    features, test = (((part - mean) / deviation).astype(np.float32) for part in (task.features, task.test))
    known = task.given != POOL
    row: Row = {
        "probe": f"{task.error(fit_probe(features[known], task.given[known]).probabilities(test).argmax(1)):.3f}"
    }
    axes = Axes.of(features, AXES)
    for arm, options in ARMS.items():
        module, rows = _trained(axes(features), task.given, seed, options)
        guessed = module.probabilities(torch.from_numpy(axes(test))).argmax(-1).numpy()
        row[arm] = f"{task.error(guessed):.3f}"
        if arm != "fixed":
            weights = module.weighting.known(torch.arange(len(rows)))[0].numpy()
            row[f"{arm}_own_auroc"] = (
                f"{_auroc(weights[~known[rows]], task.truth[rows][~known[rows]] >= 0):.3f}"
            )
    return [row]


def _trained(
    features: np.ndarray, given: np.ndarray, seed: int, options: dict[str, Any]
) -> tuple[SSLModule, np.ndarray]:
    """A module, and the rows that its weights are of."""
    seed_everything(seed, verbose=False)
    pool, labels = torch.from_numpy(features), torch.from_numpy(given)
    data = TensorData(
        pool,
        labels,
        augmentations={"weak": nn.Identity()},
        num_validation=0,
        labeled_batch_size=int((given != POOL).sum()),
        unlabeled_batch_size=len(given),
        evaluation_batch_size=4096,
        split_seed=seed,
    )
    data.seed = seed
    optimizer = partial(
        BoundedNewton, labeled=pool[labels != POOL], pool=pool, decay=DECAY, bound=BOUND, scale=1.0
    )
    module = SSLModule(
        int(given.max()) + 1,
        Precomputed(features.shape[1]),
        UDA(threshold=None, temperature=0.5, strong=["weak"]),
        ExactLastLayer(damping="reference_code", max_dense=6000),
        WeightingOptions(inner_steps=4, warmup_steps=50, bounds=(0.0, BOUND), **options),
        ThetaOptions(optimizer, decay_all=True, ema_decay=0.0),
    )
    bare_trainer(STEPS, "cpu").fit(module, data)
    assert data.split is not None
    rows = data.split.unlabeled.numpy()
    module.trainer = None
    return module.eval(), rows


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score  # slow to import

    return float(roc_auc_score(positive, score))


def table(rows: list[Row]) -> str:
    """Mean errors, and paired differences from λ = 1."""
    lines = [f"| pool | {' | '.join(TITLES.values())} |", "|---" * (len(TITLES) + 1) + "|"]
    for cell, own in cells_of(rows, KEY).items():
        line = [f"{cell} ({len(own)})"]
        for name in TITLES:
            mean, half = difference(own, name, "fixed")
            error = np.mean([float(row[name]) for row in own])
            line.append(f"{error:.1f}" + ("" if name == "fixed" else f" ({mean:+.1f} ± {half:.1f})"))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write the CSV."""
    options = frozen_options(__doc__).parse_args()
    jobs = {
        (pool, str(seed)): partial(run, options.features, pool, seed)
        for seed in options.seeds
        for pool in POOLS
    }
    rows = make_rows(jobs, KEY, options)
    rows.sort(key=lambda row: POOLS.index(row["pool"]))
    print(table(rows))


if __name__ == "__main__":
    main()
