"""M-Adam (the paper's Algorithm 2, Appendix C): Adam that moves only the rows that have a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

BiasCorrection = Literal["global", "per_example"]


class MaskedAdam(Optimizer):
    """Adam on sparse gradients: neither values nor running averages of absent rows are touched.

    One step costs time and memory traffic in the number of rows present, not in the length of the parameter.
    Rows whose gradient is exactly zero count as absent (M = 1[g ≠ 0], Alg. 2 line 5); a row that appears
    several times has its gradients summed first.

    State of a parameter of n rows: ``moments``, (n, 2) or (n, 3) in the parameter's dtype: running mean,
    running mean square and, for ``per_example``, the number of updates, side by side so that a row is one
    cache line; and ``step``, the number of steps so far.

    Args:
        params: One-dimensional tensors (n,), floating, with ``.grad`` sparse (COO). They may be buffers.
        lr: α, the step size.
        betas: β₁, β₂, decay rates of the running averages.
        eps: Added to the denominator.
        bias_correction: ``global`` divides by 1 − βᵗ with the number of steps t, as Alg. 2 is printed: an
            example first seen late takes a first step of about 3·lr. ``per_example`` counts t for every
            row by itself, as the authors' code does: every step is at most about lr.

    Raises:
        ValueError: On an argument out of range, naming it.
        RuntimeError: On a dense gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        bias_correction: BiasCorrection = "global",
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr={lr}: must be above 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: both must be in [0, 1)")
        if not eps >= 0:
            raise ValueError(f"eps={eps}: must be at least 0")
        if bias_correction not in ("global", "per_example"):
            raise ValueError(f"bias_correction={bias_correction!r}: must be 'global' or 'per_example'")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every row that has a non-zero gradient; see the class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for values in group["params"]:
                if values.grad is not None:
                    self._update(values, values.grad, group)
        return loss

    def _update(self, values: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if not gradient.is_sparse:
            raise RuntimeError(
                "MaskedAdam takes sparse (COO) gradients; a dense one belongs to torch.optim.Adam"
            )
        gradient = gradient.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        per_example = group["bias_correction"] == "per_example"
        state = self.state[values]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["moments"] = values.new_zeros(len(values), 3 if per_example else 2)
        state["step"] += 1
        beta1, beta2 = group["betas"]

        old = state["moments"][rows]
        mean = torch.lerp(g, old[:, 0], beta1)
        square = torch.lerp(g * g, old[:, 1], beta2)
        present = g != 0
        if per_example:
            t = old[:, 2] + 1
            correction1, correction2 = 1 - beta1**t, 1 - beta2**t
            new = torch.stack((mean, square, t), 1)
        else:
            t_global = float(state["step"])
            correction1, correction2 = 1 - beta1**t_global, 1 - beta2**t_global
            new = torch.stack((mean, square), 1)
        step = group["lr"] * (mean / correction1) / ((square / correction2).sqrt() + group["eps"])
        state["moments"].index_copy_(0, rows, torch.where(present[:, None], new, old))
        values.index_add_(0, rows, torch.where(present, step, 0), alpha=-1)
