"""Λ: one weight for every unlabelled example, as an indexed buffer that is read and moved sparsely."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.distributed import all_processes, process_count, process_rank, summed
from ssl_weighting.errors import UserError
from ssl_weighting.row_file import RowFile
from ssl_weighting.rules import Rule

WEIGHT, MOMENTS, UPDATES, INFLUENCE, PSEUDO_LABEL, CONFIDENCE = 0, slice(1, 4), 4, 5, 6, 7
"""Columns of a :class:`RowFile` that keeps Λ."""


def row_defaults(init: float) -> Tensor:
    """A row of the file as it is before its example was seen, (8,) float32."""
    nan = float("nan")
    return torch.tensor([init, 0, 0, 0, 0, nan, -1, nan])


class _Rows(nn.Module):
    """Buffers with a row an example: whole in every process, or each process's own rows of them.

    Sharded, process r of k holds the rows u with u mod k = r, and one more, which stands for all rows of others
    and is never read. Where a row of several processes is asked for, every process must ask, for equally many.

    Args:
        size: |U|.
        sharded: Divide the rows among the processes.
    """

    def __init__(self, size: int, sharded: bool) -> None:
        super().__init__()
        self.size = size
        self.world, self.rank = (process_count(), process_rank()) if sharded else (1, 0)
        self.length = size if self.world == 1 else -(-size // self.world) + 1

    def _place(self, index: Tensor) -> Tensor:
        """Where rows (B,) are in this process's buffers."""
        if self.world == 1:
            return index
        return torch.where(index % self.world == self.rank, index // self.world, self.length - 1)

    def _read(self, buffer: Tensor, index: Tensor) -> Tensor:
        """Rows (B,) of a buffer, whoever holds them."""
        if self.world == 1:
            return buffer[index]
        wanted = all_processes(index)
        found = torch.where(wanted % self.world == self.rank, buffer[self._place(wanted)], 0)
        return summed(found)[process_rank() * len(index) :][: len(index)]

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """A ``state_dict`` with all rows, on the CPU, made of those of all processes; empty but in the first."""

        def one(shard: Tensor) -> Tensor:
            if shard.dim() == 0 or len(shard) != self.length:
                return shard
            kept = []
            for part in torch.split(shard[:-1], 2**22):
                everybody = all_processes(part).view(self.world, *part.shape).transpose(0, 1).flatten(0, 1)
                if process_rank() == 0:
                    kept.append(everybody.cpu())
            return torch.cat(kept)[: self.size] if kept else shard.new_empty(0)

        return state if self.world == 1 else pytree.tree_map_only(Tensor, one, state)

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The inverse of :meth:`whole`: this process's part of all rows."""

        def one(every: Tensor) -> Tensor:
            if every.dim() == 0 or len(every) != self.size:
                return every
            mine = every[self.rank :: self.world]
            return torch.cat((mine, mine.new_zeros(self.length - len(mine), *mine.shape[1:])))

        return state if self.world == 1 else pytree.tree_map_only(Tensor, one, state)


class ExampleWeights(_Rows):
    """The weights λ_u ≥ 0 of all unlabelled examples, and how they move (Alg. 1, line 12).

    Λ is a buffer and not an ``nn.Parameter``: it takes no part in backpropagation. Values, the rule's state and the
    number of steps are part of ``state_dict``, rows only where they are not in a file. The rule's hyper-parameters
    are not.

    Args:
        size: |U|, the number of rows.
        rule: How rows move; see :func:`~ssl_weighting.rules.make_rule`.
        init: Every weight's initial value (the paper: 1, or 5 with 250 labels).
        bounds: Smallest and largest value; weights are clamped after every step.
        shared: One weight for all examples (the paper's Fig. 4, left) instead of one each.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
    """

    values: Tensor
    moments: Tensor

    def __init__(
        self,
        size: int,
        rule: Rule,
        init: float = 1.0,
        bounds: tuple[float, float] = (0.0, float("inf")),
        shared: bool = False,
        sharded: bool = False,
        file: RowFile | None = None,
    ) -> None:
        super().__init__(size, sharded and not shared)
        self.rule, self.bounds, self.shared, self.steps = rule, bounds, shared, 0
        self.file = None if shared else file
        length = 1 if shared else 0 if file is not None else self.length
        self.register_buffer("values", torch.full((length,), float(init)))
        self.register_buffer("moments", torch.zeros(length, rule.columns))

    def gather(self, index: Tensor) -> Tensor:
        """λ of the rows ``index``, (B,) int64. Returns (B,)."""
        self._check(index)
        if self.shared:
            return self.values.expand(len(index))
        if self.file is not None:
            return self.file.read(index)[:, WEIGHT].to(self.values).clamp(*self.bounds)
        return self._read(self.values, index)

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor, examples: int | None = None) -> None:
        """Move the rows ``index`` (B,) against ``gradient`` (B,); rows named twice have theirs summed.

        A shared weight takes the mean over the examples of their summed gradients. All processes hand over the same.

        Args:
            index: Rows, int64: once an example and loss term.
            gradient: Derivatives in the rows' weights.
            examples: How many examples they are of; default B, as of one term.
        """
        self._check(index)
        self.steps += 1
        gradient = gradient.to(self.values)
        if self.shared:
            index, gradient = torch.zeros_like(index[:1]), gradient.sum()[None] / (examples or len(index))
        rows, place = torch.unique(index, return_inverse=True)
        gradient = gradient.new_zeros(len(rows)).index_add_(0, place, gradient)
        if self.file is not None:
            self._step_in(self.file, rows, gradient)
            return
        if self.world > 1:
            gradient = torch.where(rows % self.world == self.rank, gradient, 0)
            rows = self._place(rows)
        if self.rule.dense:
            gradient = torch.zeros_like(self.values).index_add_(0, rows, gradient)
            rows = torch.arange(len(self.values), device=rows.device)
        values, moments = self.rule.update(self.values[rows], gradient, self.moments[rows], self.steps)
        self.values[rows], self.moments[rows] = values.clamp(*self.bounds), moments

    def _step_in(self, file: RowFile, index: Tensor, gradient: Tensor) -> None:
        """A step on the rows named, brought into memory with their moments and put back."""
        rows = file.read(index)
        state = rows.to(self.values)
        values, moments = self.rule.update(
            state[:, WEIGHT].clamp(*self.bounds), gradient, state[:, MOMENTS], self.steps
        )
        rows[:, WEIGHT], rows[:, MOMENTS] = values.clamp(*self.bounds).cpu(), moments.cpu()
        file.write(index, rows)

    def _check(self, index: Tensor) -> None:
        # On an accelerator this would wait for the device; its own indexing check answers there.
        if index.device.type == "cpu" and len(index):
            low, high = index.aminmax()
            if low < 0 or high >= self.size:
                raise UserError(
                    f"an unlabelled batch names row {int(high if high >= self.size else low)}, but Λ has rows "
                    f"0 to {self.size - 1}: the batch's `index` must count the examples of the split's unlabelled list"
                )

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, for ``state_dict``."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of steps from a ``state_dict``."""
        self.steps = state["steps"]


class Happened(NamedTuple):
    """Rows of an :class:`ExampleRecord`, (B,) each: see there."""

    updates: Tensor
    influence: Tensor
    pseudo_label: Tensor
    confidence: Tensor


class ExampleRecord(_Rows):
    """What happened to every unlabelled example so far: one row each, written as batches come by.

    Buffers, all (size,): ``updates`` int32, how many Λ steps moved the example; ``influence`` float32, its
    last influence on the validation loss (NaN before the first); ``pseudo_label`` int32 (−1 before the first)
    and ``confidence`` float32 (NaN), the last target's largest entry and its place.

    Args:
        size: |U|.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
    """

    updates: Tensor
    influence: Tensor
    pseudo_label: Tensor
    confidence: Tensor

    def __init__(self, size: int, sharded: bool = False, file: RowFile | None = None) -> None:
        super().__init__(size, sharded)
        self.file = file
        length = 0 if file is not None else self.length
        self.register_buffer("updates", torch.zeros(length, dtype=torch.int32))
        self.register_buffer("influence", torch.full((length,), float("nan")))
        self.register_buffer("pseudo_label", torch.full((length,), -1, dtype=torch.int32))
        self.register_buffer("confidence", torch.full((length,), float("nan")))

    def gather(self, index: Tensor) -> Happened:
        """What happened to the rows ``index``, (B,) int64."""
        if self.file is not None:
            rows = self.file.read(index).to(self.confidence.device)
            return Happened(
                rows[:, UPDATES].int(), rows[:, INFLUENCE], rows[:, PSEUDO_LABEL].int(), rows[:, CONFIDENCE]
            )
        return Happened(*(self._read(getattr(self, name), index) for name in Happened._fields))

    def saw(self, index: Tensor, target: Tensor, confidence: Tensor | None) -> None:
        """Note what the rows ``index`` (B,) were compared to: ``target`` (B, C), believed with ``confidence`` (B,).

        What is not finite is not noted. Each process hands over what it saw; all of them note it.
        """
        largest, label = target.max(-1)
        believed = (largest if confidence is None else confidence).float()
        if process_count() > 1:
            index, label, believed = (
                x.to(x0)
                for x, x0 in zip(
                    all_processes(torch.stack([index.double(), label.double(), believed.double()], 1)).T,
                    (index, label, believed),
                    strict=True,
                )
            )
        if self.file is not None:
            rows, finite = self.file.read(index), believed.isfinite().cpu()
            rows[:, PSEUDO_LABEL] = torch.where(finite, label.float().cpu(), rows[:, PSEUDO_LABEL])
            rows[:, CONFIDENCE] = torch.where(finite, believed.cpu(), rows[:, CONFIDENCE])
            self.file.write(index, rows)
            return
        place, finite = self._place(index), believed.isfinite()
        believed = believed.to(self.confidence.dtype)
        self.confidence[place] = torch.where(finite, believed, self.confidence[place])
        self.pseudo_label[place] = torch.where(finite, label.int(), self.pseudo_label[place])

    def moved(self, index: Tensor, influence: Tensor) -> None:
        """Note the influences (B,) by which a Λ step moved the rows ``index`` (B,); those of a repeated row add up.

        A row whose influence is zero did not move. All processes hand over the same.
        """
        rows, place = torch.unique(index, return_inverse=True)
        influence = influence.float()
        total = influence.new_zeros(len(rows)).index_add_(0, place, influence)
        if self.file is not None:
            kept, total = self.file.read(rows), total.cpu()
            kept[:, UPDATES] += (total != 0).float()
            kept[:, INFLUENCE] = torch.where(total != 0, total, kept[:, INFLUENCE])
            self.file.write(rows, kept)
            return
        rows = self._place(rows)
        self.updates[rows] += (total != 0).int()
        self.influence[rows] = torch.where(total != 0, total.to(self.influence.dtype), self.influence[rows])
