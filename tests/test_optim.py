"""M-Adam against independent loops."""

import math

import pytest
import torch

from ssl_weighting.optim import MaskedAdam

BETAS, EPS, LR = (0.9, 0.999), 1e-8, 0.01


def batches(size: int, steps: int, seed: int = 0):
    """(rows, gradients) with rows that repeat within a batch and zeros among the gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, size, (7,), generator=generator)
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        gradient[torch.rand(7, generator=generator) < 0.2] = 0
        yield rows, gradient


def sparse(rows, gradient, size):
    return torch.sparse_coo_tensor(rows[None], gradient, (size,))


def run(size, steps, **options):
    values = torch.ones(size, dtype=torch.float64)
    optimizer = MaskedAdam([values], lr=LR, **options)
    for rows, gradient in batches(size, steps):
        values.grad = sparse(rows, gradient, size)
        optimizer.step()
    return values, optimizer


def test_per_example_equals_one_scalar_adam_for_every_row():
    size, steps = 20, 60
    values, _ = run(size, steps, bias_correction="per_example")
    scalars = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(size)]
    adams = [torch.optim.Adam([scalar], lr=LR, betas=BETAS, eps=EPS) for scalar in scalars]
    for rows, gradient in batches(size, steps):
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, rows, gradient)
        for row in rows.unique().tolist():
            if total[row] != 0:
                scalars[row].grad = total[row].clone()
                adams[row].step()
    torch.testing.assert_close(values, torch.stack([s.detach() for s in scalars]), rtol=0, atol=1e-12)


def test_global_equals_algorithm_2_written_out_densely():
    size, steps = 20, 60
    values, _ = run(size, steps, bias_correction="global")
    weights, m, v = torch.ones(size).double(), torch.zeros(size).double(), torch.zeros(size).double()
    for t, (rows, gradient) in enumerate(batches(size, steps), start=1):
        g = torch.zeros(size, dtype=torch.float64).index_add_(0, rows, gradient)
        mask = (g != 0).double()
        m = m + (BETAS[0] - 1) * m * mask + (1 - BETAS[0]) * g
        v = v + (BETAS[1] - 1) * v * mask + (1 - BETAS[1]) * g * g
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        weights = weights - LR * m_hat * mask / (v_hat.sqrt() + EPS)
    torch.testing.assert_close(values, weights, rtol=0, atol=1e-12)


def test_first_step_is_lr_per_example_and_three_times_as_much_globally():
    """ssl_hyperparameters, section 1: with a large global t the first step is lr·(1−β₁)/√(1−β₂)."""
    for correction, expected in (("per_example", LR), ("global", LR * 0.1 / math.sqrt(0.001))):
        values = torch.ones(3, dtype=torch.float64)
        optimizer = MaskedAdam([values], lr=LR, bias_correction=correction)
        for _ in range(20_000):
            optimizer.state[values] or optimizer.state[values].update(
                step=torch.zeros((), dtype=torch.float64),
                moments=torch.zeros(3, 3 if correction == "per_example" else 2, dtype=torch.float64),
            )
            optimizer.state[values]["step"] += 1
        values.grad = sparse(torch.tensor([1]), torch.tensor([5.0]).double(), 3)
        optimizer.step()
        assert values[1].item() == pytest.approx(1 - expected, rel=1e-3)
        assert values[0] == values[2] == 1


def test_state_survives_a_state_dict():
    size = 20
    through, _ = run(size, 60)
    values = torch.ones(size, dtype=torch.float64)
    optimizer = MaskedAdam([values], lr=LR)
    for step, (rows, gradient) in enumerate(batches(size, 60)):
        if step == 30:
            state = optimizer.state_dict()
            optimizer = MaskedAdam([values], lr=LR)
            optimizer.load_state_dict(state)
        values.grad = sparse(rows, gradient, size)
        optimizer.step()
    assert torch.equal(values, through)


def test_dense_gradient_is_refused():
    values = torch.ones(3)
    values.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="sparse"):
        MaskedAdam([values]).step()


@pytest.mark.parametrize(
    "options", [{"lr": 0}, {"betas": (1.0, 0.9)}, {"eps": -1}, {"bias_correction": "none"}]
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskedAdam([torch.ones(1)], **options)
