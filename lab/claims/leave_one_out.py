"""Do influences agree with leaving an example out of the training of a deep net?

    python -m lab.claims.leave_one_out [--seeds 3] [--out leave_one_out.csv] [--jobs 2]

A net with two hidden layers on scikit-learn's digits, float64: 20 labelled images, 300 unlabelled ones with
pseudo-labels of a net that saw the labelled ones alone (a third are wrong), 150 validation images. The net is trained
on all of them by gradient descent with momentum on the whole training loss, with weight decay; then again from the same
start 300 times, each time without one unlabelled example. What every example did to the validation loss is compared, by
rank correlation, with what the influences of the net trained on all say, once at the end (`last`) and summed over
training, every `EVERY` steps, as λ sums them (`summed`). No step draws anything, so the two trainings differ in the
example alone. A CSV has a row for each seed, length of training, influence and way of reading it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import functional_call, grad, vmap

from lab.grid import Row, grid_options, make_rows
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective

LABELED, VALIDATION, UNLABELED = 20, 150, 300
STEPS = (100, 400)
EVERY = 20
CHUNK = 20
RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-3
INFLUENCES: dict[str, Influence] = {
    "exact last layer, damping 0.001": ExactLastLayer(1e-3),
    "exact last layer, damping 1": ExactLastLayer(1.0),
    "identity, last layer": Identity(scope="last_layer"),
    "identity, all layers": Identity(scope="all"),
    "conjugate gradient, all layers, damping 0.1": ConjugateGradient(
        scope="all", damping=0.1, max_iterations=200
    ),
    "relative": RelativeInfluence(),
}

State = tuple[dict[str, Tensor], dict[str, Tensor]]


class Study:
    """One draw of images and of the net's start."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images))[: LABELED + VALIDATION + UNLABELED]
        parts = [LABELED, VALIDATION, UNLABELED]
        self.x, self.validation, self.pool = torch.split(torch.tensor(images / 16)[order], parts)
        classes = F.one_hot(torch.tensor(labels)[order], 10).double()
        self.y, self.truth, self.pool_truth = torch.split(classes, parts)
        self.network = Classifier(MLP(64, (64, 64)), 10).double()
        self.start = {k: v.detach().clone() for k, v in self.network.named_parameters()}
        self.guesses = torch.zeros_like(self.pool_truth)
        first = self.nets(1)
        self.train(first, torch.zeros(1, UNLABELED, dtype=torch.float64), 400)
        self.guesses = F.one_hot(self.logits(first[0], self.pool)[0].argmax(-1), 10).double()

    def logits(self, theta: dict[str, Tensor], x: Tensor) -> Tensor:
        """(nets, B, 10) of many nets at once."""
        logits: Tensor = vmap(lambda t: functional_call(self.network, t, (x,)).logits)(theta)
        return logits

    def loss(self, theta: dict[str, Tensor], weights: Tensor) -> Tensor:
        """One net's training loss with its own λ (300,)."""
        known = functional_call(self.network, theta, (self.x,)).logits
        guessed = functional_call(self.network, theta, (self.pool,)).logits
        own = CROSS_ENTROPY.value(guessed, self.guesses)
        decay = sum(p.square().sum() for p in theta.values())
        return CROSS_ENTROPY.value(known, self.y).mean() + (weights * own).mean() + DECAY / 2 * decay

    def nets(self, count: int) -> State:
        """So many nets at the start, θ and momentum, first axis the net."""
        theta = {k: v.expand(count, *v.shape).clone() for k, v in self.start.items()}
        return theta, {k: torch.zeros_like(v) for k, v in theta.items()}

    def train(self, nets: State, weights: Tensor, steps: int) -> None:
        """Move θ and momentum of the nets, each with its own row of λ (nets, 300), in place."""
        gradient = vmap(grad(self.loss))
        for rows in torch.split(torch.arange(len(weights)), CHUNK):  # what fits into the cache at once
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            theta, momentum = ({k: v[part] for k, v in held.items()} for held in nets)
            for _ in range(steps):
                for name, value in gradient(theta, weights[part]).items():
                    momentum[name].mul_(MOMENTUM).add_(value)
                    theta[name].sub_(RATE * momentum[name])

    def validation_loss(self, theta: dict[str, Tensor]) -> Tensor:
        """(nets,)."""
        return vmap(lambda z: CROSS_ENTROPY.value(z, self.truth).mean())(self.logits(theta, self.validation))

    def influence(self, influence: Influence, theta: dict[str, Tensor]) -> Tensor:
        """(300,) at θ of the first net."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(theta[name][0])

        def term(x: Tensor, target: Tensor, index: Tensor | None = None) -> LossTerm:
            _, features, logits, *_ = self.network(x)
            ones = torch.ones(len(x), dtype=torch.float64)
            return LossTerm(
                "t", x, features.detach(), logits.detach(), target, CROSS_ENTROPY, ones, index,
                anchor=features.detach(),
            )  # fmt: skip

        terms = [term(self.x, self.y), term(self.pool, self.guesses, torch.arange(UNLABELED))]
        objective = Objective(terms, [None, torch.ones(UNLABELED, dtype=torch.float64)])
        (found,) = influence(self.network, objective, term(self.validation, self.truth))
        return found.double()


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation."""
    return float(torch.corrcoef(torch.stack([x.argsort().argsort().double() for x in (a, b)]))[0, 1])


def run(seed: int) -> list[Row]:
    """Rows of one seed, but for it."""
    study = Study(seed)
    wrong = float((study.guesses * study.pool_truth).sum(1).eq(0).double().mean())
    one = torch.ones(1, UNLABELED, dtype=torch.float64)
    without = 1 - torch.eye(UNLABELED, dtype=torch.float64)
    together, left_out = study.nets(1), study.nets(UNLABELED)
    summed: dict[str, Tensor] = defaultdict(lambda: torch.zeros(UNLABELED, dtype=torch.float64))
    rows = []
    for begin, end in pairwise((0, *STEPS)):
        for _ in range(begin, end, EVERY):
            study.train(together, one, EVERY)
            last = {name: study.influence(i, together[0]) for name, i in INFLUENCES.items()}
            for name, value in last.items():
                summed[name] += value
        study.train(left_out, without, end - begin)
        # An influence is the derivative in λ: leaving out has the opposite sign.
        true = study.validation_loss(together[0]) - study.validation_loss(left_out[0])
        for name in INFLUENCES:
            for way, value in (("last", last[name]), ("summed", summed[name])):
                row = {"steps": str(end), "influence": name, "read": way}
                row |= {"spearman": f"{spearman(value, true):.4f}", "wrong_pseudo_labels": f"{wrong:.3f}"}
                rows.append(row)
    return rows


def main() -> None:
    """Print the table and write the CSV."""
    parser = grid_options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = make_rows({(str(seed),): partial(run, seed) for seed in range(options.seeds)}, ("seed",), options)
    print(f"| influence | {' | '.join(f'{n} steps: last, summed' for n in STEPS)} |")
    print("|---" * (len(STEPS) + 1) + "|")
    for name in INFLUENCES:
        cells = []
        for steps in STEPS:
            mine = [row for row in rows if (row["steps"], row["influence"]) == (str(steps), name)]
            means = [
                statistics.mean(float(row["spearman"]) for row in mine if row["read"] == way)
                for way in ("last", "summed")
            ]
            cells.append(", ".join(f"{mean:.2f}" for mean in means))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
