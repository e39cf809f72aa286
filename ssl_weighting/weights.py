"""Λ: one weight for every unlabelled example, as an indexed buffer that is read and moved sparsely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_weighting.errors import UserError

OptimizerFactory = Callable[[list[Tensor]], Optimizer]


class ExampleWeights(nn.Module):
    """The weights λ_u ≥ 0 of all unlabelled examples, and the optimiser that moves them (Alg. 1, line 12).

    Λ is a buffer and not an ``nn.Parameter``: it takes no part in backpropagation, and its optimiser must not
    count as one of the trainer's. Values and optimiser state are part of ``state_dict``.

    Args:
        size: |U|, the number of rows.
        optimizer: Makes the optimiser from a list of one tensor (size,). It is handed sparse gradients,
            unless ``dense``.
        init: Every weight's initial value (the paper: 1, or 5 with 250 labels).
        bounds: Smallest and largest value; weights are clamped after every step.
        shared: One weight for all examples (the paper's Fig. 4, left) instead of one each.
        dense: Hand the optimiser a dense gradient, so that all rows move (the ablation of Sec. 4.3).
    """

    values: Tensor

    def __init__(
        self,
        size: int,
        optimizer: OptimizerFactory,
        init: float = 1.0,
        bounds: tuple[float, float] = (0.0, float("inf")),
        shared: bool = False,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.bounds, self.shared, self.dense = size, bounds, shared, dense
        self.register_buffer("values", torch.full((1 if shared else size,), float(init)))
        self._factory = optimizer
        self._optimizer: Optimizer | None = None
        self._pending_state: dict[str, Any] | None = None

    def gather(self, index: Tensor) -> Tensor:
        """λ of the rows ``index``, (B,) int64. Returns (B,)."""
        self._check(index)
        return self.values.expand(len(index)) if self.shared else self.values[index]

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor) -> None:
        """Move the rows ``index`` (B,) against ``gradient`` (B,); rows named twice have theirs summed.

        A shared weight takes the mean of the gradient.
        """
        self._check(index)
        optimizer = self._current_optimizer()
        gradient = gradient.to(self.values)
        if self.shared:
            index, gradient = torch.zeros_like(index[:1]), gradient.mean()[None]
        sparse = torch.sparse_coo_tensor(index[None], gradient, self.values.shape, check_invariants=False)
        self.values.grad = sparse.to_dense() if self.dense else sparse
        optimizer.step()
        self.values.grad = None
        if self.dense:
            self.values.clamp_(*self.bounds)
        else:
            self.values[index] = self.values[index].clamp(*self.bounds)

    def _check(self, index: Tensor) -> None:
        # On an accelerator this would wait for the device; its own indexing check answers there.
        if index.device.type == "cpu" and len(index):
            low, high = index.aminmax()
            if low < 0 or high >= self.size:
                raise UserError(
                    f"an unlabelled batch names row {int(high if high >= self.size else low)}, but Λ has rows "
                    f"0 to {self.size - 1}: the batch's `index` must count the examples of the split's unlabelled list"
                )

    def _current_optimizer(self) -> Optimizer:
        """The optimiser of the buffer as it is now: moving the module to a device replaces the buffer."""
        if self._optimizer is not None and self._optimizer.param_groups[0]["params"][0] is not self.values:
            self._pending_state, self._optimizer = self._optimizer.state_dict(), None
        if self._optimizer is None:
            self._optimizer = self._factory([self.values])
            if self._pending_state is not None:
                self._optimizer.load_state_dict(self._pending_state)
                self._pending_state = None
        return self._optimizer

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state, for ``state_dict``."""
        return self._current_optimizer().state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the optimiser's state from a ``state_dict``."""
        self._pending_state, self._optimizer = state, None


class ExampleRecord(nn.Module):
    """What happened to every unlabelled example so far: one row each, written as batches come by.

    Buffers, all (size,): ``updates`` int32, how many Λ steps moved the example; ``influence`` float32, its
    last influence on the validation loss (NaN before the first); ``pseudo_label`` int32 (−1 before the first)
    and ``confidence`` float32 (NaN), the last target's largest entry and its place.
    """

    updates: Tensor
    influence: Tensor
    pseudo_label: Tensor
    confidence: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros(size, dtype=torch.int32))
        self.register_buffer("influence", torch.full((size,), float("nan")))
        self.register_buffer("pseudo_label", torch.full((size,), -1, dtype=torch.int32))
        self.register_buffer("confidence", torch.full((size,), float("nan")))

    def saw(self, index: Tensor, target: Tensor, confidence: Tensor | None) -> None:
        """Note what the rows ``index`` (B,) were compared to: ``target`` (B, C), believed with ``confidence`` (B,)."""
        largest, label = target.max(-1)
        self.confidence[index] = (largest if confidence is None else confidence).float()
        self.pseudo_label[index] = label.int()

    def moved(self, index: Tensor, influence: Tensor) -> None:
        """Note the influences (B,) by which a Λ step moved the rows ``index`` (B,); those of a repeated row add up.

        A row whose influence is zero did not move.
        """
        rows, place = torch.unique(index, return_inverse=True)
        total = torch.zeros(len(rows), device=index.device).index_add_(0, place, influence.float())
        self.updates[rows] += (total != 0).int()
        self.influence[rows] = torch.where(total != 0, total, self.influence[rows])
