"""Features of a frozen encoder: computed once, kept on the disk, memory-mapped."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ssl_weighting.errors import UserError


class FeatureFile:
    """Features (n, K, D) float32 of the rows of a source, K draws of one view each; rows are filled one by one.

    A row that is there stays: an encoding that was stopped goes on, and other splits of the same data share it. Rows
    that nobody asked for take no room on file systems that know sparse files, which are nearly all.

    Args:
        folder: Where its two files lie; named by what they are made of, so that it is never out of date.
        shape: n, K and D.

    Raises:
        UserError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                sizes = {folder / "values": int(np.prod(shape)) * 4, folder / "done": shape[0]}
                if any(not path.exists() or path.stat().st_size != size for path, size in sizes.items()):
                    for path, size in sizes.items():  # both: what is done is so in these very values
                        with open(path, "wb") as file:
                            file.truncate(size)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"model.features.cache={self.folder.parent}: cannot be written ({error.strerror}); name a folder that "
            "can with --model.features.cache FOLDER"
        )

    def lock(self) -> FileLock:
        """Held by the one process that fills it."""
        return FileLock(self.folder / "lock")

    def missing(self, rows: Tensor) -> Tensor:
        """Those of some rows (m,) int64 that are not filled, in their order."""
        return rows[torch.from_numpy(self._done[rows.numpy()] == 0)]

    def fill(self, rows: Tensor, features: Tensor) -> None:
        """Keep features (m, K, D) of rows (m,).

        Written as a file is, for a full disk kills a process that writes to mapped memory.

        Raises:
            UserError: If there is no room for them.
        """
        values, size = features.float().cpu().contiguous().numpy(), int(np.prod(self.shape[1:])) * 4
        try:
            with open(self.folder / "values", "rb+", buffering=0) as file:
                for row, value in zip(rows.tolist(), values, strict=True):
                    _write(file.fileno(), value.tobytes(), row * size)
            with open(self.folder / "done", "rb+", buffering=0) as file:
                for row in rows.tolist():
                    _write(file.fileno(), b"\1", row)
        except OSError as error:
            raise self._unwritable(error) from None

    def fetch(self, rows: Tensor) -> Tensor:
        """Features (m, K, D) float32 of rows (m,) int64."""
        return torch.from_numpy(self._values[rows.numpy()])

    @cached_property
    def _values(self) -> Any:
        return np.memmap(self.folder / "values", np.float32, "r", shape=self.shape)

    @cached_property
    def _done(self) -> Any:
        return np.memmap(self.folder / "done", np.uint8, "r", shape=self.shape[:1])

    def __getstate__(self) -> dict[str, Any]:
        """What data workers get: the files' names, not what is in them."""
        return {"folder": self.folder, "shape": self.shape}


def _write(file: int, content: bytes, place: int) -> None:
    while content:
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


class FeatureTable:
    """What is handed out instead of raw inputs: features of each view, by its name.

    Args:
        views: A file for each, over the rows of one source.
    """

    def __init__(self, views: dict[str, FeatureFile]) -> None:
        self.views = views

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """(B, K, D) float32 of rows (B,) int64, by the view's name."""
        return {name: file.fetch(rows) for name, file in self.views.items()}
