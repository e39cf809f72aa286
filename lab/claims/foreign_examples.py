"""Which score of an unlabelled example tells that it belongs to no class? Every candidate in one and the same training.

    python -m lab.claims.foreign_examples [--seeds 4] [--out foreign_examples.csv] [--jobs 2]

Digits of the recipe `digits_dirty`: five classes known, ten labels, half of the pool of the five others, UDA with all
λ = 1. Every fourth step each example of a batch is given all scores, by a plug-in influence that computes them all and
moves no weight; they are averaged over training. Printed: area under the ROC curve, own against foreign, of single
glances (one batch each, averaged) and of each example's average, as λ sums them up.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch import seed_everything
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lab.grid import Row, grid_options, make_rows
from lab.speed.loop import quiet
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.module import SSLModule
from ssl_weighting.protocols import Network
from ssl_weighting.terms import LossTerm, Objective
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

POOLS = {
    "5 to 9 known": ([5, 6, 7, 8, 9], [0, 1, 2, 3, 4]),
    "0 to 4 known": ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]),
}
STEPS, EVERY = 400, 4
DAMPINGS = (1e-3, 0.1, 1.0, 10.0)
Score = Callable[[Network, Objective, LossTerm], Tensor]


def _helps(influence: Influence, network: Network, objective: Objective, validation: LossTerm) -> Tensor:
    return -influence(network, objective, validation)[0]


def _per_gradient(damping: float, network: Network, objective: Objective, validation: LossTerm) -> Tensor:
    """Eq. 6 over the length of the example's gradient."""
    (term,) = (t for t in objective.terms if t.row is not None)
    residual: Tensor = term.distance.gradient(term.logits, term.target).norm(dim=1)
    length: Tensor = residual * (term.features.square().sum(1) + 1).sqrt()
    helps = _helps(ExactLastLayer(damping), network, objective, validation)
    return helps / length.clamp(min=1e-12)


def _confidence(network: Network, objective: Objective, validation: LossTerm) -> Tensor:
    (term,) = (t for t in objective.terms if t.row is not None)
    assert term.confidence is not None
    return term.confidence


def scores() -> dict[str, Score]:
    """Every candidate by its name; more is better."""

    def of(influence: Influence) -> Score:
        return lambda *arguments: _helps(influence, *arguments)

    found: dict[str, Score] = {"confidence": _confidence}
    for damping in DAMPINGS:
        found[f"Eq. 6, damping {damping:g}"] = of(ExactLastLayer(damping))
    for damping in DAMPINGS:
        found[f"Eq. 6 over gradient length, damping {damping:g}"] = (
            lambda *arguments, damping=damping: _per_gradient(damping, *arguments)
        )  # fmt: skip
    for neighbours in (150, 15, 5, 1):
        name = "all" if neighbours == 150 else str(neighbours)
        found[f"relative, nearest of V': {name}"] = of(RelativeInfluence(neighbours))
    return found


class Recorder(Influence):
    """Computes every score of a batch, and leaves all weights as they are."""

    def __init__(self) -> None:
        self.scores = scores()
        self.glances: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        (term,) = (t for t in objective.terms if t.row is not None)
        assert term.row is not None
        for name, score in self.scores.items():
            self.glances[name].append((term.row.cpu(), score(network, objective, validation).double().cpu()))
        return [torch.zeros_like(term.mask)]


def run(pool: str, seed: int) -> list[Row]:
    """A row a score of one training, as the recipe `digits_dirty` has it but for the weights."""
    quiet()
    seed_everything(seed, verbose=False)
    recorder = Recorder()
    known, foreign = POOLS[pool]
    data = Digits(
        known_classes=known, pool_classes=foreign, num_labeled=10, num_validation=150, labeled_batch_size=10,
        unlabeled_batch_size=128, validation_batch_size=150, split_seed=seed,
    )  # fmt: skip
    module = SSLModule(
        5, SmallConvNet(1), UDA(), recorder,
        WeightingOptions(inner_steps=EVERY, warmup_steps=50, optimizer="sgd", update_masked=True),
        ThetaOptions(ema_decay=0.99),
    )  # fmt: skip
    bare_trainer(STEPS, "cpu").fit(module, data)
    own = data.unlabeled_labels() < 5
    rows: list[Row] = []
    for name, glances in recorder.glances.items():
        single = statistics.mean(roc_auc_score(own[index], score) for index, score in glances)
        index, score = (torch.cat(parts) for parts in zip(*glances, strict=True))
        total, count = torch.zeros(2, len(own), dtype=torch.float64)
        total.index_add_(0, index, score)
        count.index_add_(0, index, torch.ones_like(score))
        seen = count > 0
        average = roc_auc_score(own[seen], (total / count)[seen])
        rows.append({"score": name, "auroc_glance": f"{single:.4f}", "auroc_average": f"{average:.4f}"})
    return rows


def main() -> None:
    """Print the table and write the CSV."""
    parser = grid_options(__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    jobs = {(pool, str(seed)): partial(run, pool, seed) for pool in POOLS for seed in range(options.seeds)}
    rows = make_rows(jobs, ("pool", "seed"), options)
    print(f"| AUROC, own against foreign | {' | '.join(f'{pool}: one glance, average' for pool in POOLS)} |")
    print("|---" * (len(POOLS) + 1) + "|")
    for name in scores():
        cells = []
        for pool in POOLS:
            found = [row for row in rows if row["pool"] == pool and row["score"] == name]
            means = [
                statistics.mean(float(row[c]) for row in found) for c in ("auroc_glance", "auroc_average")
            ]
            cells.append(", ".join(f"{mean:.2f}" for mean in means))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
