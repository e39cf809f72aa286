"""Learning-rate schedules of the methods' own codes, as factors of the base rate."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["cosine_7_16", "cosine_7_8", "linear", "constant"]


def make_schedule(
    optimizer: Optimizer, schedule: Schedule, total_steps: int, warmup_steps: int = 0
) -> LambdaLR:
    """A scheduler to be stepped once a θ step.

    Args:
        optimizer: Whose rate it sets.
        schedule: ``cosine_7_16``: cos(7π/16 · k/K), FixMatch's. ``cosine_7_8``: cos(7/8 · π/2 · k/K), UDA's way of
            writing the same curve. ``linear``: 1 − k/K of all steps (BERT; UDA's text code). ``constant``.
        total_steps: K.
        warmup_steps: The rate rises linearly from 0 over the first so many steps.
    """
    span = max(1, total_steps - warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        if schedule == "linear":  # the warm-up overrides it and does not shift it
            return max(0.0, 1 - step / max(1, total_steps))
        if schedule in ("cosine_7_16", "cosine_7_8"):
            return math.cos(7 * math.pi / 16 * min(1.0, (step - warmup_steps) / span))
        return 1.0

    return LambdaLR(optimizer, factor)
