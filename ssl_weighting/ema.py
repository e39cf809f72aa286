"""Exponential moving average of θ."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class MovingAverage(nn.Module):
    """A copy of a model whose parameters follow it as θ' ← decay·θ' + (1 − decay)·θ, and whose buffers are its own.

    As in FixMatch's code: trainable variables are averaged, batch-norm statistics are the newest. (torch's
    AveragedModel does the same, but reads its step counter back from the device at every update.)

    Args:
        model: The model to follow.
        decay: 0.999 in FixMatch's code; 0 follows exactly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the model by one step."""
        if self.decay or any(isinstance(p, DTensor) for p in model.parameters()):  # a decay of 0 copies
            torch._foreach_lerp_(_parts(self.model), _parts(model), 1 - self.decay)
        else:
            for own, followed in zip(self.model.parameters(), model.parameters(), strict=True):
                own.data = followed.data  # the same memory: nothing to copy, now or at the next step
        ours, newest = list(self.model.buffers()), list(model.buffers())
        for dtype in {b.dtype for b in ours}:  # one kernel for all of a kind
            same = [i for i, b in enumerate(ours) if b.dtype == dtype]
            torch._foreach_copy_([ours[i] for i in same], [newest[i] for i in same])

    def train(self, mode: bool = True) -> MovingAverage:
        """Stays in evaluation mode."""
        return super().train(False)


def _parts(model: nn.Module) -> list[Tensor]:
    """All parameters, or this process's parts of them where they are divided among processes."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
