"""What several processes that train together tell each other. With one process every function is the identity."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_first_process() -> bool:
    """Whether this is the only process of its run or, by the environment that started it, the first of several."""
    # Late: what was exported is used without lightning.
    from lightning.pytorch.utilities import rank_zero_only

    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def all_processes(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all processes, in turn; B must be the same in all. The result is the same everywhere."""
    if process_count() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(process_count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def all_objects(mine: Any) -> list[Any]:
    """Something of every process, in turn: tensors on the CPU, numbers, strings and containers of them."""
    if process_count() == 1:
        return [mine]
    gathered: list[Any] = [None] * process_count()
    dist.all_gather_object(gathered, mine)
    return gathered


def summed(tensor: Tensor) -> Tensor:
    """The sum over the processes, of the tensor's shape."""
    if process_count() == 1:
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def averaged(tensor: Tensor) -> Tensor:
    """The mean over the processes: losses are means over a process's batch, and all batches are of one size."""
    return tensor if process_count() == 1 else summed(tensor) / process_count()
