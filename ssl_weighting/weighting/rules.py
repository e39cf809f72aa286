"""How Λ moves: update rules as pure functions of rows. Values and state go in, values and state come out.

Hyper-parameters are arguments and no part of the state, so that a resumed run follows its command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

BiasCorrection = Literal["global", "per_example"]
WeightOptimizer = Literal["masked_adam", "sgd", "adam"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MOMENTS = 3
"""Most numbers of state that a rule keeps for a row."""


def masked_adam(
    values: Tensor,
    gradient: Tensor,
    moments: Tensor,
    steps: int,
    *,
    lr: float,
    bias_correction: BiasCorrection = "global",
) -> tuple[Tensor, Tensor]:
    """M-Adam (the paper's Algorithm 2): Adam on the rows of a batch; those whose gradient is zero do not move.

    Args:
        values: (B,), a row each.
        gradient: (B,); zero masks a row, its moments too (M = 1[g ≠ 0], Alg. 2 line 5).
        moments: (B, 2) or (B, 3): running mean, running mean square and, if there is a third column (which
            ``per_example`` needs), how often the row moved.
        steps: t, this step counted.
        lr: α, the step size.
        bias_correction: ``global`` divides by 1 − βᵗ with the number of steps t, as Alg. 2 is printed: an
            example first seen late takes a first step of about 3·lr. ``per_example`` counts t for every
            row by itself, as the authors' code does: every step is at most about lr.

    Returns:
        New values and moments, in the same shapes.
    """
    mean = torch.lerp(gradient, moments[:, 0], BETA1)
    square = torch.lerp(gradient * gradient, moments[:, 1], BETA2)
    counts = [column + 1 for column in moments.T[2:]]
    t = counts[0] if bias_correction == "per_example" else float(steps)
    change = lr * (mean / (1 - BETA1**t)) / ((square / (1 - BETA2**t)).sqrt() + EPSILON)
    present = gradient != 0
    moved = torch.where(present[:, None], torch.stack((mean, square, *counts), 1), moments)
    return values - torch.where(present, change, 0), moved


def sgd(values: Tensor, gradient: Tensor, moments: Tensor, steps: int, *, lr: float) -> tuple[Tensor, Tensor]:
    """Plain gradient descent. See :func:`masked_adam`; ``moments`` are left alone."""
    return torch.add(values, gradient, alpha=-lr), moments


def adam(
    values: Tensor, gradient: Tensor, moments: Tensor, steps: int, *, lr: float
) -> tuple[Tensor, Tensor]:
    """Adam as torch has it, of all rows, also of those without a gradient. See :func:`masked_adam`."""
    values, (mean, square) = values.clone(), moments.T.contiguous()
    torch_adam(
        [values],
        [gradient],
        [mean],
        [square],
        max_exp_avg_sqs=[],
        state_steps=[torch.tensor(float(steps - 1))],
        amsgrad=False,
        beta1=BETA1,
        beta2=BETA2,
        lr=lr,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )
    return values, torch.stack((mean, square), 1)


@dataclass(frozen=True)
class Rule:
    """An update rule with its hyper-parameters.

    Attributes:
        update: Values (B,), gradient (B,), moments (B, M) and number of steps to new values and moments.
        columns: M, numbers of state that it keeps for a row.
        dense: Whether it wants all rows, and not only those of a batch.
    """

    update: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    columns: int
    dense: bool = False


def make_rule(name: WeightOptimizer, lr: float, bias_correction: BiasCorrection = "global") -> Rule:
    """The rule that ``model.weighting.optimizer`` names."""
    if name == "sgd":
        return Rule(partial(sgd, lr=lr), 0)
    if name == "adam":
        return Rule(partial(adam, lr=lr), 2, dense=True)
    columns = 3 if bias_correction == "per_example" else 2
    return Rule(partial(masked_adam, lr=lr, bias_correction=bias_correction), columns)
