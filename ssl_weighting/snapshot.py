"""What a θ step changes before it is known to be finite, kept so that the step can be left out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ssl_weighting.distributed import averaged


class Snapshot:
    """Buffers and further state of modules, as they are when this is made.

    Args:
        modules: Parameters are no part of it: they move only when a step is made.
    """

    def __init__(self, *modules: nn.Module) -> None:
        parts = [part for module in modules for part in module.modules()]
        self._buffers = [
            (part, name, buffer.clone())
            for part in parts
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._others = [
            (part, copy.deepcopy(part.get_extra_state()))
            for part in parts
            if type(part).get_extra_state is not nn.Module.get_extra_state
        ]
        self._bad: list[Tensor] = []

    def see(self, value: Tensor) -> None:
        """Remember, on the device, whether a number is finite."""
        self._bad.append(~value.detach().isfinite())

    def stays_finite(self, gradients: list[Tensor]) -> bool:
        """Whether all that was seen, the gradients and what is kept here are finite. Waits for the device.

        Where a buffer was not finite before (not a number for "nothing seen", say), it may stay so. All processes
        answer the same.
        """
        now = [(getattr(part, name), before) for part, name, before in self._buffers]
        now = [(buffer, before) for buffer, before in now if before.is_floating_point()]
        bad = [~norm.isfinite() for norm in torch._foreach_norm(gradients)]
        if now:
            norms, norms_before = (torch._foreach_norm(list(side)) for side in zip(*now, strict=True))
            bad += [~a.isfinite() & b.isfinite() for a, b in zip(norms, norms_before, strict=True)]
        return not averaged(torch.stack([*self._bad, *bad]).any().float())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for part, name, before in self._buffers:
            buffer = getattr(part, name)
            if buffer.shape == before.shape:
                buffer.copy_(before)
            else:
                setattr(part, name, before)
        for part, before in self._others:
            part.set_extra_state(before)
