"""A row of numbers for every unlabelled example: whole in memory, divided among processes, or in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.distributed import all_processes, process_count, process_rank, summed
from ssl_weighting.errors import UserError
from ssl_weighting.weighting.row_file import RowFile


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        default: What a row holds before it is written.
        dtype: Of its buffer; a file keeps float32.
        width: Numbers a row; ``None`` for a single one, whose column is (n,) and not (n, width).
    """

    default: float
    dtype: torch.dtype = torch.float32
    width: int | None = None


def defaults_of(*tables: Mapping[str, Column]) -> Tensor:
    """A row of a file that holds the columns of some tables, as it is before it is written, (W,) float32."""
    columns = [column for table in tables for column in table.values()]
    return torch.tensor([c.default for c in columns for _ in range(1 if c.width is None else c.width)])


class Table(nn.Module):
    """Named columns with a row an example, which are read and written by rows.

    In memory a column is a buffer, and part of ``state_dict``. It is no ``nn.Parameter``: Λ takes no part in
    backpropagation. Sharded, process r of k holds the rows u with u mod k = r, and one more, which stands for all rows of
    others and is never read.

    Args:
        size: n, the number of rows.
        columns: The columns by name.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
        first: The first of the file's columns that is this table's.
    """

    def __init__(
        self,
        size: int,
        columns: Mapping[str, Column],
        sharded: bool = False,
        file: RowFile | None = None,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.size, self.columns, self.file = size, dict(columns), file
        self.world, self.rank = (process_count(), process_rank()) if sharded else (1, 0)
        self.length = size if self.world == 1 else -(-size // self.world) + 1
        self._in_file: dict[str, int | slice] = {}
        for name, (default, dtype, width) in self.columns.items():
            shape = (0 if file is not None else self.length, *([] if width is None else [width]))
            self.register_buffer(name, torch.full(shape, default, dtype=dtype))
            self._in_file[name] = first if width is None else slice(first, first + width)
            first += 1 if width is None else width

    def column(self, name: str) -> Tensor:
        """The buffer of a column: all rows that this process holds."""
        buffer: Tensor = getattr(self, name)
        return buffer

    def read(self, rows: Tensor, *names: str) -> list[Tensor]:
        """Columns of some rows, whoever holds them; sharded, every process must ask, for equally many.

        Args:
            rows: (B,) int64.
            names: Columns.

        Returns:
            A tensor a column, (B,) or (B, width).
        """
        self._check(rows)
        if self.file is not None:
            return self._columns_of(self.file.read(rows), names)
        if self.world == 1:
            return [self.column(name)[rows] for name in names]
        wanted = all_processes(rows)
        mine, place = self.holds(wanted), self.place(wanted)
        found = []
        for name in names:
            column = self.column(name)[place]
            found.append(summed(torch.where(mine if column.dim() == 1 else mine[:, None], column, 0)))
        return [column[process_rank() * len(rows) :][: len(rows)] for column in found]

    @torch.no_grad()
    def update(
        self, rows: Tensor | None, names: Sequence[str], change: Callable[..., Sequence[Tensor]]
    ) -> None:
        """Read columns of some rows, change them and write them; each process those that it holds.

        Args:
            rows: (B,) int64; ``None`` for all rows in memory.
            names: Columns.
            change: From the columns of these rows, in this order, what they are to hold.
        """
        if self.file is not None and rows is not None:
            stored = self.file.read(rows)
            for name, value in zip(names, change(*self._columns_of(stored, names)), strict=True):
                stored[:, self._in_file[name]] = value.float().cpu()
            self.file.write(rows, stored)
            return
        place = slice(None) if rows is None else self.place(rows)
        changed = change(*(self.column(name)[place] for name in names))
        for name, value in zip(names, changed, strict=True):
            self.column(name)[place] = value

    def _columns_of(self, stored: Tensor, names: Sequence[str]) -> list[Tensor]:
        return [stored[:, self._in_file[name]].to(self.column(name)) for name in names]

    def holds(self, rows: Tensor) -> Tensor:
        """Which rows (B,) are this process's, bool."""
        return rows % self.world == self.rank

    def place(self, rows: Tensor) -> Tensor:
        """Where rows (B,) are in this process's buffers."""
        return rows if self.world == 1 else torch.where(self.holds(rows), rows // self.world, self.length - 1)

    def _check(self, rows: Tensor) -> None:
        # On an accelerator this would wait for the device; its own indexing check answers there.
        if rows.device.type == "cpu" and len(rows):
            low, high = rows.aminmax()
            if low < 0 or high >= self.size:
                raise UserError(
                    f"an unlabelled batch names row {int(high if high >= self.size else low)}, but Λ has rows "
                    f"0 to {self.size - 1}: a batch's `row` must count the examples of the split's unlabelled list"
                )

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
