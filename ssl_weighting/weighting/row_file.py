"""Rows of numbers in a file: for a Λ that no memory holds. Reads and writes cost what the rows named cost.

Not by mapping the file into memory: a full disk would then be a fatal signal, and every row read brings its neighbours.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

MAGIC = b"ssl-weighting rows 1\n"
HEADER = 4096


class RowFile:
    """A table (n, W) of float32 in a sparse file, of which rows that were never written take no room.

    The file is what it was at the last checkpoint. What is written since lives in memory, so that a crash, even
    of the machine, leaves a file and a checkpoint that belong together:

        journal(step)   the rows written since, into a file beside it
                        (the caller then replaces its checkpoint by that of ``step``)
        settle(step)    the same rows into the table, and the journal is deleted

    ``open_at(step)`` does what a crash between the two left undone, and forgets a journal of a later step.

    Args:
        path: The file. Its header says how many rows there are, how wide, and at which step.
        size: n.
        defaults: (W,) float32, a row before it is written.

    Raises:
        UserError: If there is a file of that name that is not such a table, or another one.
    """

    def __init__(self, path: Path, size: int, defaults: Tensor) -> None:
        self.path, self.size, self.defaults = path, size, defaults.numpy()
        self.width = len(self.defaults) + 1  # the last column says whether the row was ever written
        self._place: dict[int, int] = {}
        self._fresh = np.empty((1024, self.width), np.float32)
        if not path.exists():
            with whole_file(path) as partial, open(partial, "wb") as file:
                file.write(self._header(0))
                file.truncate(HEADER + size * self.width * 4)
        self._open()

    def _header(self, step: int) -> bytes:
        return (MAGIC + f"{self.size} {self.width} {step}\n".encode()).ljust(HEADER, b"\0")

    def _open(self) -> None:
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  (open as long as the table is)
        if hasattr(os, "posix_fadvise"):  # else every row would bring its neighbours from the disk
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        header = self._file.read(HEADER)
        try:
            if not header.startswith(MAGIC):
                raise ValueError
            size, width, self.step = map(int, header[len(MAGIC) :].split(b"\n")[0].split())
        except ValueError:
            raise UserError(f"{self.path}: not a file of weights; move it away") from None
        expected = HEADER + self.size * self.width * 4
        if (size, width) != (self.size, self.width) or self.path.stat().st_size != expected:
            raise UserError(
                f"{self.path}: holds {size} rows in {self.path.stat().st_size} bytes, the data has {self.size} "
                f"unlabelled examples and needs {expected} bytes; it is damaged, another run's, or "
                "of another model.weighting.kind: leave that as it was"
            )

    @property
    def _journal(self) -> Path:
        return self.path.with_suffix(".journal")

    def read(self, index: Tensor) -> Tensor:
        """Rows (B,) int64. Returns (B, W), on the CPU, a copy."""
        asked = index.cpu().numpy()
        place = self._place
        found = np.fromiter((place.get(row, -1) for row in asked.tolist()), np.int64, len(asked))
        rows = self._fresh[found]
        old = found < 0
        rows[old] = self._from_disk(asked[old])
        rows = np.where(rows[:, -1:] > 0, rows[:, :-1], self.defaults)
        return torch.from_numpy(rows)

    def _from_disk(self, asked: np.ndarray) -> np.ndarray:
        """Rows (B,) of the table, (B, W + 1); one call of the system for every run of neighbours."""
        if not len(asked):
            return np.empty((0, self.width), np.float32)
        file, row_bytes, parts, start = self._file.fileno(), self.width * 4, [], 0
        for end in [*(np.flatnonzero(np.diff(asked) != 1) + 1).tolist(), len(asked)]:
            parts.append(os.pread(file, (end - start) * row_bytes, HEADER + int(asked[start]) * row_bytes))
            start = end
        return np.frombuffer(b"".join(parts), np.float32).reshape(len(asked), self.width)

    def write(self, index: Tensor, rows: Tensor) -> None:
        """Replace rows (B,) by ``rows`` (B, W) on the CPU; of a row named twice the last counts."""
        place, asked = self._place, index.cpu().tolist()
        for row in asked:
            place.setdefault(row, len(place))
        while len(place) > len(self._fresh):
            self._fresh = np.concatenate((self._fresh, np.empty_like(self._fresh)))
        where = [place[row] for row in asked]
        self._fresh[where, :-1] = rows.numpy()
        self._fresh[where, -1] = 1

    def journal(self, step: int) -> None:
        """Write what is new since the last checkpoint beside the table, whole or not at all."""
        with whole_file(self._journal) as partial:
            rows = torch.tensor(list(self._place), dtype=torch.int64)
            data = torch.from_numpy(self._fresh[: len(rows)])
            torch.save({"after": self.step, "step": step, "rows": rows, "data": data.clone()}, partial)

    def settle(self, step: int) -> None:
        """Bring the table to ``step``, for which there is a checkpoint now."""
        rows = np.fromiter(self._place, np.int64, len(self._place))
        self._apply(rows, self._fresh[: len(rows)], step)
        self.forget(step)

    def forget(self, step: int) -> None:
        """Drop what is new: another process has brought the table to ``step``."""
        self._place, self.step = {}, step
        self._fresh = np.empty((1024, self.width), np.float32)

    def _apply(self, rows: np.ndarray, data: np.ndarray, step: int) -> None:
        file = os.open(self.path, os.O_WRONLY)
        try:
            for at in np.argsort(rows):
                os.pwrite(file, data[at].tobytes(), HEADER + int(rows[at]) * self.width * 4)
            os.fsync(file)
            os.pwrite(file, self._header(step), 0)
            os.fsync(file)
        finally:
            os.close(file)
        self._journal.unlink(missing_ok=True)

    def open_at(self, step: int) -> None:
        """Bring the table to the step of a checkpoint that is gone on from.

        Raises:
            UserError: If that is not possible: the table is another checkpoint's.
        """
        if self._journal.exists():
            kept = torch.load(self._journal, weights_only=True)
            if kept["step"] == step and kept["after"] == self.step:
                self._apply(kept["rows"].numpy(), kept["data"].numpy(), step)
            else:
                self._journal.unlink()
        self._open()
        if self.step != step:
            raise UserError(
                f"{self.path}: holds the weights of step {self.step}, the checkpoint is of step {step}; with "
                "storage: disk only the last checkpoint can be gone on from"
            )


def open_rows(folder: Path, size: int, defaults: Tensor, strategy: Strategy) -> RowFile:
    """``weights.rows`` in a run's folder, made by the first process."""
    path = folder / "weights.rows"
    if strategy.is_global_zero:
        RowFile(path, size, defaults)
    strategy.barrier("weights.rows")
    return RowFile(path, size, defaults)


def open_rows_at(file: RowFile, step: int, strategy: Strategy) -> None:
    """Bring a file that several processes share to the step of a checkpoint."""
    if strategy.is_global_zero:
        file.open_at(step)
    strategy.barrier("weights.rows")
    file.open_at(step)
