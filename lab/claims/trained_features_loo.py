"""Labels that trained the features as well: are they too kind as judges, and what would make them stricter?

    python -m lab.claims.trained_features_loo [--seeds 3] [--out trained_features_loo.csv] [--jobs 2]

UDA with all λ = 1 on digits, a small net, 40 labels that all train, as with `data.num_validation: 0`; 340 more are kept
aside, and serve only to measure. Every `EVERY` steps the influences of a batch in the last layer are taken by every
judge: by 300 of those; by the other 40; by the 40 that train, as they are; by the same, each left out in turn by one
Newton step, as `ExactLastLayer` does; by heads that were trained to the end without a fifth of them, on the objective
or on the labels alone; and in strong views. Printed, means over training and seeds: cross-entropy of the judges'
predictions, where that of the 300 is what it ought to be; correlation with the influences by the 300, of equal damping;
area under the ROC curve, right from wrong pseudo-labels, of examples that have no label.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lab.claims.leave_one_out import spearman
from lab.grid import Row, grid_options, make_rows
from lab.speed.loop import quiet
from ssl_weighting.algorithms.base import supervised_term
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data import LabeledBatch
from ssl_weighting.data.digits import Digits
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.module import SSLModule
from ssl_weighting.protocols import Forward, Network
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

LABELS, HELD_OUT, FOLDS = 40, 340, 5
STEPS, EVERY = 400, 100
DAMPINGS = (5e-4, 0.1, 1.0)
POOLS: dict[str, dict[str, Any]] = {
    "clean": {},
    "half foreign": {"known_classes": [5, 6, 7, 8, 9], "pool_classes": [0, 1, 2, 3, 4]},
}
Judged = tuple[Tensor, float]
"""Influences (n,) and the judges' loss, nats."""


class Part:
    """Examples of a term on the last layer, the bias among its weights; w are their shares of the loss."""

    def __init__(self, term: LossTerm) -> None:
        self.x = torch.cat((term.features, torch.ones(len(term.features), 1)), 1).double()
        self.z, self.y = term.logits.double(), term.target.double()
        self.w = term.mask.double() * term.scale / len(term.mask)

    def pull(self, change: Tensor) -> Tensor:
        """∂ℓ/∂logits (n, C), the head's weights being changed by (C, d)."""
        return CROSS_ENTROPY.gradient(self.z + self.x @ change.T, self.y)

    def gradient(self, change: Tensor) -> Tensor:
        """(C, d)."""
        return (self.w[:, None] * self.pull(change)).T @ self.x

    def hessian(self, change: Tensor) -> Tensor:
        """(C d, C d)."""
        curvature = CROSS_ENTROPY.hessian(self.z + self.x @ change.T, self.y) * self.w[:, None, None]
        size = self.x.shape[1] * self.z.shape[1]
        return torch.einsum("nrs,nd,ne->rdse", curvature, self.x, self.x).reshape(size, size)


def cross_fitted(
    trained: LossTerm, shown: LossTerm, pool: LossTerm, damping: float, alone: bool = False
) -> Judged:
    """Influences by labelled examples, each judged by a head that was trained to the end without its fold.

    Args:
        trained: The labelled examples as they train.
        shown: The same as they judge.
        pool: The unlabelled ones.
        damping: δ, half a square of the head's change, or of the head itself where it is trained on labels ``alone``.
        alone: Train the judging heads on the labels alone, from 0; the pool is moved by the present head all the same.
    """
    known, judge, others = Part(trained), Part(shown), Part(pool)
    none = torch.zeros(known.z.shape[1], known.x.shape[1], dtype=torch.float64)
    whole = known.gradient(none) + others.gradient(none)  # the present head stays where nothing is left out
    if alone:
        known.z, judge.z, whole = known.z * 0, judge.z * 0, none
    fold = torch.randperm(len(known.x)) % FOLDS
    influences, losses = torch.zeros(len(others.x), dtype=torch.float64), torch.zeros(len(known.x))
    weights, identity = known.w, torch.eye(none.numel(), dtype=torch.float64)
    for k in range(FOLDS):
        known.w, change = weights * (fold != k), none
        parts = [known] if alone else [known, others]
        for _ in range(20):
            slope = sum((part.gradient(change) for part in parts), damping * change - whole)
            hessian = sum((part.hessian(change) for part in parts), damping * identity)
            step = torch.linalg.solve(hessian, slope.flatten()).view_as(change)
            change = change - step / max(1.0, float(step.norm()))
            if step.norm() < 1e-3:
                break
        at = none if alone else change
        if alone:
            hessian = known.hessian(none) + others.hessian(none) + damping * identity
        pull = (weights * (fold == k))[:, None] * judge.pull(change)
        solution = torch.linalg.solve(hessian, (pull.T @ judge.x).flatten()).view_as(change)
        influences -= (others.pull(at) * (others.x @ solution.T)).sum(1)
        value = CROSS_ENTROPY.value(judge.z + judge.x @ change.T, judge.y)
        losses[fold == k] = value[fold == k].float()
    return influences, float(losses.mean())


def left_out(trained: LossTerm, shown: LossTerm, pool: LossTerm, damping: float) -> Judged:
    """The same, each left out alone by one Newton step: :class:`ExactLastLayer` where ``shown`` is ``trained``."""
    known, judge, others = Part(trained), Part(shown), Part(pool)
    none = torch.zeros(known.z.shape[1], known.x.shape[1], dtype=torch.float64)
    own = torch.einsum("nr,nd->nrd", known.w[:, None] * known.pull(none), known.x).flatten(1)
    system = (
        known.hessian(none) + others.hessian(none) + damping * torch.eye(none.numel(), dtype=torch.float64)
    )
    curvature = CROSS_ENTROPY.hessian(known.z, known.y) * known.w[:, None, None]
    influences, losses = torch.zeros(len(others.x), dtype=torch.float64), []
    for i, x in enumerate(known.x):
        without = system - torch.einsum("rs,d,e->rdse", curvature[i], x, x).reshape(system.shape)
        factor = torch.linalg.cholesky(without)
        change = torch.cholesky_solve(own[i, :, None], factor).view_as(none)
        z = judge.z[i] + change @ judge.x[i]
        pull = judge.w[i] * (z.softmax(0) - judge.y[i])
        solution = torch.cholesky_solve(torch.outer(pull, judge.x[i]).view(-1, 1), factor).view_as(none)
        influences -= (others.pull(none) * (others.x @ solution.T)).sum(1)
        losses.append(float(CROSS_ENTROPY.value(z, judge.y[i])))
    return influences, statistics.mean(losses)


class Recorder(Influence):
    """Takes the influences of a batch by every judge, and leaves all weights as they are."""

    def __init__(self, data: Digits) -> None:
        self.data, self.rows = data, list[Row]()
        self.steps = 0

    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        (pool,) = (t for t in objective.terms if t.row is not None)
        assert pool.row is not None
        if len(validation.target) < HELD_OUT:  # tried before training
            return [torch.zeros_like(pool.mask)]
        self.steps += EVERY

        def known(inputs: Tensor, target: Tensor) -> LossTerm:
            return supervised_term(cast(Forward, network(inputs)), target)

        given = cast(LabeledBatch, self.data.sets["labeled"].__getitems__(list(range(LABELS))))
        target = F.one_hot(given.labels, validation.target.shape[1]).float()
        weak, strong = (
            known(self.data.view(given.inputs, steps), target) for steps in (("weak",), UDA().views["strong"])
        )
        as_many, others = (
            known(validation.inputs[part], validation.target[part])
            for part in (slice(LABELS), slice(LABELS, None))
        )
        terms = Objective([weak, pool], [None, objective.weights[-1]])
        truth = self.data.unlabeled_labels()[pool.row]
        unseen = ~torch.isin(self.data.sets["unlabeled"].rows[pool.row], self.data.sets["labeled"].rows)
        right = (pool.target.argmax(1) == truth)[unseen]

        def by(influence: Influence, term: LossTerm, judge: LossTerm) -> Judged:
            return influence(network, Objective([term, pool], terms.weights), judge)[0].double(), float(
                judge.loss()
            )

        def keep(damping: str, ways: dict[str, Callable[[], Judged]]) -> None:
            found = {name: way() for name, way in ways.items()}
            best = next(iter(found.values()))[0]
            for name, (value, loss) in found.items():
                row: Row = {
                    "step": str(self.steps),
                    "damping": damping,
                    "judges": name,
                    "loss": f"{loss:.4f}",
                }
                row["pearson"] = f"{float(torch.corrcoef(torch.stack((value, best)))[0, 1]):.4f}"
                row["spearman"] = f"{spearman(value, best):.4f}"
                mixed = 0 < right.sum() < len(right)
                row["auroc"] = f"{roc_auc_score(right, -value[unseen]):.4f}" if mixed else "nan"
                self.rows.append(row)

        copy = known(weak.inputs, target)  # not the objective's own: nothing is left out
        for damping in DAMPINGS:
            exact = ExactLastLayer(damping)
            keep(
                f"{damping:g}",
                {
                    "300 held out": partial(by, exact, weak, others),
                    "40 held out": partial(by, exact, weak, as_many),
                    "as trained on": partial(by, exact, weak, copy),
                    "each left out": partial(left_out, weak, weak, pool, damping),
                    "each left out, strong views": partial(left_out, weak, strong, pool, damping),
                    "5 folds": partial(cross_fitted, weak, weak, pool, damping),
                    "5 folds, strong views": partial(cross_fitted, weak, strong, pool, damping),
                    "5 folds of labels alone": partial(cross_fitted, weak, weak, pool, damping, True),
                },
            )
        keep(
            "RelativeInfluence",
            {
                "300 held out": partial(by, RelativeInfluence(), weak, others),
                "40 held out": partial(by, RelativeInfluence(), weak, as_many),
                "each left out": partial(by, RelativeInfluence(), weak, weak),
                "each left out, strong views": partial(by, RelativeInfluence(), weak, strong),
            },
        )
        return [torch.zeros_like(pool.mask)]


def run(pool: str, seed: int) -> list[Row]:
    """A row a judge and damping and moment of one training."""
    quiet()
    seed_everything(seed, verbose=False)
    data = Digits(
        num_labeled=LABELS, num_validation=HELD_OUT, labeled_batch_size=LABELS, unlabeled_batch_size=128,
        validation_batch_size=HELD_OUT, split_seed=seed, **POOLS[pool],
    )  # fmt: skip
    recorder = Recorder(data)
    classes = len(POOLS[pool].get("known_classes", range(10)))
    module = SSLModule(
        classes, SmallConvNet(1, (16, 32)), UDA(), recorder,
        WeightingOptions(inner_steps=EVERY, warmup_steps=0, optimizer="sgd", update_masked=True),
        ThetaOptions(ema_decay=0.99),
    )  # fmt: skip
    bare_trainer(STEPS, "cpu").fit(module, data)
    return recorder.rows


def main() -> None:
    """Print the table and write the CSV."""
    parser = grid_options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    jobs = {(pool, str(seed)): partial(run, pool, seed) for pool in POOLS for seed in range(options.seeds)}
    rows = make_rows(jobs, ("pool", "seed"), options)
    columns = ("loss", "pearson", "spearman", "auroc")
    shown = ", ".join(columns)
    print(f"| damping | judges | {' | '.join(f'{pool}: {shown}' for pool in POOLS)} |")
    print("|---" * (len(POOLS) + 2) + "|")
    for damping, judges in dict.fromkeys((row["damping"], row["judges"]) for row in rows):
        cells = []
        for pool in POOLS:
            mine = [r for r in rows if (r["damping"], r["judges"], r["pool"]) == (damping, judges, pool)]
            values = ([float(row[c]) for row in mine if row[c] != "nan"] for c in columns)
            cells.append(", ".join(f"{statistics.mean(v):.2f}" for v in values))
        print(f"| {damping} | {judges} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
