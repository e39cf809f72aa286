"""Leave-one-out in the last layer: against dense autograd, and against leaving each label out and training again."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.errors import UserError
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, KL_DIVERGENCE, LossTerm, Objective

DAMPING = 0.05


def trained(known, pool, weights):
    """Weights (D + 1, C) of a convex head, trained to its minimum by Newton steps in closed form.

    Args:
        known: Labelled features, targets and each one's share of the loss.
        pool: Features and targets.
        weights: λ of the pool's.
    """
    x = torch.cat([torch.cat((part[0], torch.ones(len(part[0]), 1).double()), 1) for part in (known, pool)])
    y, share = torch.cat((known[1], pool[1])), torch.cat((known[2], weights / len(weights)))
    d, c = x.shape[1], y.shape[1]
    w = torch.zeros(d, c).double()
    for _ in range(10):
        p = (x @ w).softmax(-1)
        gradient = x.T @ (share[:, None] * (p - y)) + DAMPING * w
        curvature = share[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
        hessian = torch.einsum("nd,nrs,ne->dres", x, curvature, x).reshape(d * c, d * c)
        step = torch.linalg.solve(hessian + DAMPING * torch.eye(d * c).double(), gradient.flatten())
        w = w - step.view(d, c)
    assert gradient.norm() < 1e-10
    return w


def example(classes=3, dim=4, labeled=12, pool=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator).double()

    def draw(n):
        kind = torch.arange(n) % classes
        x = 0.8 * centres[kind] + 0.7 * torch.randn(n, dim, generator=generator).double()
        return x, torch.eye(classes).double()[kind]

    known, (x, y) = draw(labeled), draw(pool)
    wrong = torch.rand(pool, generator=generator) < 0.3
    y = torch.where(wrong[:, None], y.roll(1, 1), y)
    return known, (x, y), torch.rand(pool, generator=generator).double() + 0.5


def objective_of(network, known, pool, weights):
    def term(x, y, distance, **more):
        out = network(x)
        return LossTerm(
            "t",
            x,
            out.features.detach(),
            out.logits.detach(),
            y,
            distance,
            torch.ones(len(x)).double(),
            **more,
        )

    terms = [term(*known, CROSS_ENTROPY), term(*pool, KL_DIVERGENCE, row=torch.arange(len(weights)))]
    return Objective(terms, [None, weights])


def left_out_loss(known, pool, weights):
    """Mean loss of the labelled examples, each by a head that was trained without it."""
    (x, y), total = known, 0.0
    for i in range(len(x)):
        share = torch.full((len(x),), 1 / len(x)).double()
        share[i] = 0
        w = trained((x, y, share), pool, weights)
        total += float(CROSS_ENTROPY.value(x[i : i + 1] @ w[:-1] + w[-1], y[i : i + 1]))
    return total / len(x)


def test_predicts_what_leaving_labels_out_and_training_again_gives():
    known, pool, weights = example(labeled=30)
    share = torch.full((len(known[0]),), 1 / len(known[0])).double()
    network = Classifier(Precomputed(4), 3).double()
    w, head = trained((*known, share), pool, weights), network.heads["classifier"]
    with torch.no_grad():
        head.weight.copy_(w[:-1].T)
        head.bias.copy_(w[-1])
    objective = objective_of(network, known, pool, weights)
    (influences,) = ExactLastLayer(DAMPING)(network, objective, objective.terms[0])
    slopes = []
    for u in range(0, len(weights), 3):
        step = torch.zeros_like(weights)
        step[u] = 1e-3
        more, less = (left_out_loss(known, pool, weights + sign * step) for sign in (1, -1))
        slopes.append(len(weights) * (more - less) / 2e-3)
    assert np.corrcoef(slopes, influences[::3].numpy())[0, 1] >= 0.99


def dense_left_out(network, objective, damping):
    """The same in dense float64: every H₋ᵢ formed and solved, no identity of Woodbury's."""
    head = network.heads["classifier"]
    shape = head.weight.shape
    flat = torch.cat([head.weight.detach().flatten(), head.bias.detach()])

    def losses(theta, term):
        values = {"weight": theta[: shape.numel()].view(shape), "bias": theta[shape.numel() :]}
        return term.distance.value(functional_call(head, values, (term.features,)), term.target)

    known, guessed = objective.terms
    weights = objective.weights[1]
    n = len(known.mask)
    of = torch.autograd.functional
    hessian = (
        of.hessian(lambda t: losses(t, known).mean() + (weights * losses(t, guessed)).mean(), flat)
        + damping * (1 if head.basis is None else 2) * torch.eye(len(flat)).double()
    )
    pulls = of.jacobian(lambda t: losses(t, guessed), flat)
    total = torch.zeros(len(weights)).double()
    for i in range(n):
        one = lambda t, i=i: losses(t, known)[i]  # noqa: E731
        without = hessian - of.hessian(one, flat) / n
        theta = flat + torch.linalg.solve(without, of.jacobian(one, flat) / n)
        total -= pulls @ torch.linalg.solve(without, of.jacobian(one, theta)) / n
    return total


@pytest.mark.parametrize(("dim", "classes"), [(4, 3), (60, 3), (4, 2)])  # 60: more than there are examples
def test_agrees_with_the_dense_computation(dim, classes):
    known, pool, weights = example(classes, dim)
    torch.manual_seed(1)
    network = Classifier(Precomputed(dim), classes).double()
    objective = objective_of(network, known, pool, weights)
    (influences,) = ExactLastLayer(DAMPING)(network, objective, objective.terms[0])
    torch.testing.assert_close(influences, dense_left_out(network, objective, DAMPING), rtol=1e-6, atol=1e-12)


def test_refuses_a_hessian_that_it_cannot_factorise():
    known, pool, weights = example()
    network = Classifier(Precomputed(4), 3).double()
    objective = objective_of(network, known, pool, weights)
    with pytest.raises(UserError, match=r"max_dense=10: .* give at least 15"):
        ExactLastLayer(DAMPING, max_dense=10)(network, objective, objective.terms[0])
