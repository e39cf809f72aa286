"""θ's learning rate over a run."""

import math

import pytest
import torch

from ssl_weighting.schedules import make_schedule


def factor(schedule, total=10_000, warmup=1000):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return make_schedule(optimizer, schedule, total, warmup).lr_lambdas[0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0), (500, 0.5), (999, 0.999), (1000, 0.9), (1001, 0.8999), (5000, 0.5), (9999, 1e-4), (10_000, 0)],
)
def test_linear_is_that_of_udas_text_code(step, expected):
    """1 − k/K over all steps; the warm-up overrides it (BERT's optimization.py)."""
    assert factor("linear")(step) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine_7_16", "cosine_7_8"])
def test_cosine(schedule):
    found = factor(schedule, warmup=0)
    assert [found(step) for step in (0, 5000, 10_000)] == pytest.approx(
        [1, math.cos(7 * math.pi / 32), math.cos(7 * math.pi / 16)]
    )


def test_constant():
    assert factor("constant")(5000) == 1
