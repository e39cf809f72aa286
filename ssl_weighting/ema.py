"""Exponential moving average of θ."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def train(self, mode: bool = True) -> MovingAverage:
        """Stays in evaluation mode."""
        return super().train(False)
