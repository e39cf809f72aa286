"""Λ's update rules against independent loops."""

import math

import pytest
import torch

from ssl_weighting.weighting import ExampleWeights
from ssl_weighting.weighting.rules import BETA1, BETA2, EPSILON, make_rule, masked_adam

LR = 0.01


def batches(size: int, steps: int, seed: int = 0):
    """(rows, gradients) with rows that repeat within a batch and zeros among the gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, size, (7,), generator=generator)
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        gradient[torch.rand(7, generator=generator) < 0.2] = 0
        yield rows, gradient


def run(size, steps, *rule):
    weights = ExampleWeights(size, make_rule(*rule)).double()
    for rows, gradient in batches(size, steps):
        weights.step(rows, gradient)
    return weights.values


def test_per_example_equals_one_scalar_adam_for_every_row():
    size, steps = 20, 60
    values = run(size, steps, "masked_adam", LR, "per_example")
    scalars = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(size)]
    adams = [torch.optim.Adam([scalar], lr=LR, betas=(BETA1, BETA2), eps=EPSILON) for scalar in scalars]
    for rows, gradient in batches(size, steps):
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, rows, gradient)
        for row in rows.unique().tolist():
            if total[row] != 0:
                scalars[row].grad = total[row].clone()
                adams[row].step()
    torch.testing.assert_close(values, torch.stack([s.detach() for s in scalars]), rtol=0, atol=1e-12)


def test_global_equals_algorithm_2_written_out_densely():
    size, steps = 20, 60
    values = run(size, steps, "masked_adam", LR)
    weights, m, v = torch.ones(size).double(), torch.zeros(size).double(), torch.zeros(size).double()
    for t, (rows, gradient) in enumerate(batches(size, steps), start=1):
        g = torch.zeros(size, dtype=torch.float64).index_add_(0, rows, gradient)
        mask = (g != 0).double()
        m = m + (BETA1 - 1) * m * mask + (1 - BETA1) * g
        v = v + (BETA2 - 1) * v * mask + (1 - BETA2) * g * g
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        weights = weights - LR * m_hat * mask / (v_hat.sqrt() + EPSILON)
    torch.testing.assert_close(values, weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_rivals_are_torchs_own(name):
    size, steps = 20, 60
    theirs = torch.ones(size, dtype=torch.float64)
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]([theirs], lr=LR)
    for rows, gradient in batches(size, steps):
        theirs.grad = torch.zeros(size, dtype=torch.float64).index_add_(0, rows, gradient)
        optimizer.step()
    torch.testing.assert_close(run(size, steps, name, LR), theirs, rtol=0, atol=1e-14)


def test_first_step_is_lr_per_example_and_three_times_as_much_globally():
    """With a large global t the first step is lr·(1−β₁)/√(1−β₂)."""
    for correction, columns, expected in (
        ("per_example", 3, LR),
        ("global", 2, LR * 0.1 / math.sqrt(0.001)),
    ):
        values, moments = torch.ones(3).double(), torch.zeros(3, columns).double()
        gradient = torch.tensor([0.0, 5.0, 0.0]).double()
        moved, kept = masked_adam(values, gradient, moments, 20_001, lr=LR, bias_correction=correction)
        assert moved[1].item() == pytest.approx(1 - expected, rel=1e-3)
        assert moved[0] == moved[2] == 1
        assert (kept[[0, 2]] == 0).all()


def test_a_rule_changes_nothing_that_it_is_given():
    for name in ("masked_adam", "sgd", "adam"):
        rule = make_rule(name, LR)
        given = [torch.ones(3), torch.ones(3), torch.zeros(3, rule.columns)]
        before = [tensor.clone() for tensor in given]
        values, _ = rule.update(*given, 1)
        assert (values != 1).all()
        assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
