"""The unrolled derivative equals finite differences through the steps of torch.optim.SGD."""

import pytest
import torch

from ssl_weighting.influence.base import ThetaStep
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.terms import Objective

STEPS = 3


def _run(c, names, start, epsilon, options, clip, record=None):
    """θ after STEPS steps of SGD on L + Σ_u ε_u ℓ_u; the terms' batch changes from step to step."""
    for name, value in start.items():
        c.network.get_parameter(name).data = value.clone()
    trained = [c.network.get_parameter(n) for n in names]
    optimizer = torch.optim.SGD(trained, **options)
    for k in range(STEPS):
        objective = Objective(c.objective.terms[k % 2 :], c.objective.weights[k % 2 :])
        if record is not None:
            parameters = {n: p.detach().clone() for n, p in c.network.named_parameters()}
            record(
                ThetaStep(
                    parameters,
                    objective,
                    options["lr"] / (k + 1),
                    options.get("momentum", 0.0),
                    options.get("weight_decay", 0.0),
                    options.get("nesterov", False),
                    clip,
                )
            )
        optimizer.param_groups[0]["lr"] = options["lr"] / (k + 1)
        flat = torch.cat([p.detach().reshape(-1) for p in trained]).requires_grad_()
        total = c.loss(names, flat, objective)
        start_u = 0
        for term in c.objective.terms:
            if term.row is not None:
                values = term.scale * term.distance.value(c.logits(names, flat, term), term.target)
                total = total + epsilon[start_u : start_u + len(values)] @ values
                start_u += len(values)
        (gradient,) = torch.autograd.grad(clip * total, flat)
        for p, part in zip(trained, gradient.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p)
        optimizer.step()


@pytest.mark.parametrize("scope", ["all", "last_layer", "last_block"])
@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"lr": 0.3}, 1.0),
        ({"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}, 1.0),
        ({"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, 0.6),
    ],
)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_equals_finite_differences_through_the_optimiser(case, kind, options, clip, scope):
    c = case(kind)
    solver = TruncatedUnroll(STEPS, scope=scope)
    names = list(solver.problem(c.network, c.objective, c.validation).parameters)
    start = {n: p.detach().clone() for n, p in c.network.named_parameters()}
    n = sum(len(t.mask) for t in c.objective.terms if t.row is not None)
    zero = torch.zeros(n, dtype=torch.float64)
    _run(c, names, start, zero, options, clip, solver.record_step)
    assert len(solver.history) == solver.records_steps == STEPS
    validation = solver._there(c.network, c.validation)
    influences = torch.cat(solver(c.network, c.objective, validation))

    def loss(epsilon):
        _run(c, names, start, epsilon, options, clip)
        return c.loss(names, c.flat(names)[1], Objective([c.validation], [None]))

    h = 1e-5
    chosen = [1, 5, 8, n - 1]
    expected = torch.stack(
        [
            (loss(zero.index_fill(0, torch.tensor([u]), h)) - loss(zero.index_fill(0, torch.tensor([u]), -h)))
            / (2 * h)
            for u in chosen
        ]
    )
    assert expected.abs().max() > 0
    assert (influences[chosen] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_only_the_last_steps_are_kept_and_history_may_be_short(case):
    c = case("mlp")
    solver = TruncatedUnroll(2, scope="all")
    identity = Identity(scope="all")(c.network, c.objective, c.validation)
    for i, j in zip(solver(c.network, c.objective, c.validation), identity, strict=True):
        torch.testing.assert_close(i, j)
    parameters = {n: p.detach().clone() for n, p in c.network.named_parameters()}
    solver.record_step(ThetaStep(parameters, c.objective, 0.1))
    for i, j in zip(solver(c.network, c.objective, c.validation), identity, strict=True):
        torch.testing.assert_close(i, 0.1 * j)
    for _ in range(5):
        solver.record_step(ThetaStep(parameters, c.objective, 0.1))
    assert len(solver.history) == 2


def test_weight_decay_by_name(case):
    c = case("mlp")
    parameters = {n: p.detach().clone() for n, p in c.network.named_parameters()}
    results = []
    for decay in (0.1, dict.fromkeys(parameters, 0.1), {}):
        solver = TruncatedUnroll(2, scope="all")
        for _ in range(2):
            solver.record_step(ThetaStep(parameters, c.objective, 0.3, 0.9, decay))
        results.append(torch.cat(solver(c.network, c.objective, c.validation)))
    torch.testing.assert_close(results[0], results[1])
    assert (results[0] - results[2]).abs().max() > 1e-6
