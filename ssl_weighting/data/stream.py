"""The order of batches, as a function of seed and step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class Stream(Sampler[list[int]]):
    """An endless shuffled sequence of batches that is a pure function of (seed, name, batch number).

    Epochs follow each other without a gap and every example comes once an epoch; a batch may span two.
    Nothing has to be saved to resume: start again at the number of batches taken.

    Args:
        size: Number of examples.
        batch_size: Examples a batch and process.
        seed: Seed of the run.
        name: Tells this stream from the run's others.
        start: First batch.
        stop: One past the last batch; ``None`` for no end.
        rank: This process.
        world_size: Number of processes; each gets its own part of a batch of ``batch_size · world_size``.
        block: If given, an epoch goes through the examples block by block of this size, and shuffles within each.
        a_pass: Batches that one iteration gives, the next goes on after them; only with ``stop=None``.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | str,
        name: str,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        block: int | None = None,
        a_pass: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.start, self.stop = size, batch_size, start, stop
        self.rank, self.world_size, self.block = rank, world_size, size if block is None else block
        self.a_pass, self._key = a_pass, f"{seed} {name}"
        self._held, self._order = "", torch.empty(0, dtype=torch.int64)

    def _permutation(self, epoch: int, block: int) -> Tensor:
        key = f"{self._key} {epoch} {block}" if block else f"{self._key} {epoch}"
        if key != self._held:
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
            first = block * self.block
            count = min(self.block, self.size - first)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            self._held, self._order = key, first + order
        return self._order

    def batch(self, number: int) -> Tensor:
        """Positions of batch ``number``, (batch_size,) int64."""
        first = (number * self.world_size + self.rank) * self.batch_size
        parts, needed = [], self.batch_size
        while needed:
            epoch, place = divmod(first, self.size)
            block, offset = divmod(place, self.block)
            part = self._permutation(epoch, block)[offset : offset + needed]
            parts.append(part)
            first, needed = first + len(part), needed - len(part)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[list[int]]:
        number, stop = self.start, self.stop
        if self.a_pass is not None:
            stop = self.start = number + self.a_pass
        while stop is None or number < stop:
            yield self.batch(number).tolist()
            number += 1

    def __len__(self) -> int:
        """Batches of the whole run: a resumed trainer counts those that were taken before."""
        if self.a_pass is not None:
            return self.a_pass
        if self.stop is None:
            raise TypeError("an endless stream has no length")
        return self.stop
