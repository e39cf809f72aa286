"""Influences against the truth: change one example's weight, retrain to convergence, and look.

Softmax regression on scikit-learn's digits with an L2 term, so that the training loss is strictly convex and θ* can
be found to machine precision. For each of 100 unlabelled examples the pseudo-label's weight is set to 0 (removed) and,
separately, doubled; the model is trained again by Newton's method; the change of the validation loss is correlated
with what the influence predicts.

    python -m lab.claims.influence_truth [--examples 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective

DAMPING = 1e-2
LABELED, VALIDATION, UNLABELED = 100, 500, 1000


class Pixels(Backbone):
    """The image itself as features."""

    feature_dim = 64

    def forward(self, inputs: Tensor) -> Tensor:
        """Features are the inputs."""
        return inputs


def trained(network: Classifier, objective: Objective) -> Classifier:
    """Newton's method on the training loss plus δ/2 |θ|², by autograd, to a gradient of 1e-10."""
    head = cast(nn.Linear, network.heads["classifier"])
    theta = torch.cat((head.weight.detach(), head.bias.detach()[:, None]), 1)

    def loss(theta: Tensor) -> Tensor:
        terms = [replace(t, logits=t.features @ theta[:, :-1].T + theta[:, -1]) for t in objective.terms]
        return Objective(terms, objective.weights).loss() + DAMPING / 2 * theta.square().sum()

    for _ in range(50):
        gradient = torch.func.grad(loss)(theta)
        if gradient.norm() < 1e-10:
            break
        hessian = _hessian(objective, theta)
        theta = theta - torch.linalg.solve(hessian, gradient.flatten()).view_as(theta)
    with torch.no_grad():
        head.weight.copy_(theta[:, :-1])
        head.bias.copy_(theta[:, -1])
    return network


def _hessian(objective: Objective, theta: Tensor) -> Tensor:
    """Σ w (diag p − p pᵀ) ⊗ x xᵀ + δ, as blocks on the diagonal less one outer product of rows p ⊗ x."""
    classes, width = theta.shape
    total = DAMPING * torch.eye(classes * width, dtype=theta.dtype)
    blocks = total.view(classes, width, classes, width)
    for term, weights in zip(objective.terms, objective.weights, strict=True):
        x = torch.cat((term.features, torch.ones(len(term.features), 1, dtype=theta.dtype)), 1)
        p = (x @ theta.T).softmax(-1)
        w = term.mask * (1 if weights is None else weights) / len(x)
        for c in range(classes):
            blocks[c, :, c] += x.T @ ((w * p[:, c])[:, None] * x)
        rows = (w.sqrt()[:, None, None] * p[:, :, None] * x[:, None, :]).flatten(1)
        total -= rows.T @ rows
    return total


def main() -> None:
    """Print both correlations."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--json")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images))
    x, y = torch.tensor(images / 16)[order], torch.tensor(labels)[order]
    x_l, x_v, x_u = x[:LABELED], x[LABELED : LABELED + VALIDATION], x[-UNLABELED:]
    y_l, y_v = y[:LABELED], y[LABELED : LABELED + VALIDATION]

    network = Classifier(Pixels(), 10).double()

    def term(inputs: Tensor, target: Tensor, index: Tensor | None = None) -> LossTerm:
        out = network(inputs)
        ones = torch.ones(len(inputs), dtype=torch.float64)
        return LossTerm("t", inputs, inputs, out.logits.detach(), target, CROSS_ENTROPY, ones, index)

    known = term(x_l, F.one_hot(y_l, 10).double())
    trained(network, Objective([known], [None]))
    guesses = F.one_hot(network(x_u).logits.argmax(-1), 10).double()  # some are wrong
    weights = torch.ones(UNLABELED, dtype=torch.float64)
    guessed = term(x_u, guesses, torch.arange(UNLABELED))
    trained(network, Objective([known, guessed], [None, weights]))

    def now(t: LossTerm) -> LossTerm:
        return replace(t, logits=network(t.inputs).logits.detach())

    validation = term(x_v, F.one_hot(y_v, 10).double())
    objective = Objective([now(known), now(guessed)], [None, weights])
    (influence,) = ExactLastLayer(DAMPING)(network, objective, validation)
    before = float(validation.loss())
    theta = {k: v.clone() for k, v in network.state_dict().items()}

    chosen = torch.randperm(UNLABELED)[: options.examples]
    result: dict[str, object] = {
        "examples": len(chosen),
        "wrong_pseudo_labels": int((guesses.argmax(-1) != y[-UNLABELED:]).sum()),
    }
    for name, delta in (("removed", -1.0), ("doubled", 1.0)):
        predicted, true = [], []
        for u in chosen.tolist():
            network.load_state_dict(theta)
            changed = weights.clone()
            changed[u] += delta
            trained(network, Objective([known, guessed], [None, changed]))
            true.append(float(now(validation).loss()) - before)
            predicted.append(delta * float(influence[u]) / UNLABELED)
        correlation = float(np.corrcoef(predicted, true)[0, 1])
        slope = float(np.polyfit(predicted, true, 1)[0])
        result[name] = {"pearson": correlation, "slope": slope}
        print(f"{name}: Pearson {correlation:.5f}, slope true/predicted {slope:.3f}, {len(chosen)} examples")
    result["seconds"] = time.perf_counter() - started
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
