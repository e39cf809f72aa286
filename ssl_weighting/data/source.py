"""Examples as they lie in a data set, and batches of them as they travel to the device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssl_weighting.data.features import FeatureTable
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs


class Batch(NamedTuple):
    """Examples of the pool. Nobody says what they are.

    Attributes:
        inputs: Raw inputs, (B, ...): uint8 images, float vectors, or a dictionary of token tensors.
        row: (B,) int64, the position in the split's unlabelled list: the row of Λ.
    """

    inputs: Inputs
    row: Tensor


class LabeledBatch(NamedTuple):
    """Examples with their labels.

    Attributes:
        inputs: Raw inputs, as those of a :class:`Batch`.
        labels: (B,) int64; known classes come first, from 0.
    """

    inputs: Inputs
    labels: Tensor


class Source(Protocol):
    """All examples of a training or test set, raw."""

    labels: Tensor
    """(n,) int64, -1 where unknown."""

    def fetch(self, rows: Tensor) -> Inputs:
        """Raw inputs of some rows, (B,) int64."""
        ...

    def checksum(self) -> str:
        """sha256 over inputs and labels, to tell data sets apart."""
        ...

    def describe(self, rows: Tensor) -> list[str]:
        """What a person knows some rows by, (B,) int64: a file's path, a text."""
        ...


def identity(source: Source) -> str:
    """What :meth:`Source.fetch` gives, in a digest: that of a source which says it, else its checksum."""
    own = getattr(source, "identity", source.checksum)
    return str(own())


def identity_of_views(source: Source) -> str:
    """What a source hands out for augmented views alone, in a digest; empty where that is nothing."""
    own = getattr(source, "identity_of_views", str)
    return str(own())


class InMemory:
    """A :class:`Source` that is one tensor (n, ...)."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def fetch(self, rows: Tensor) -> Tensor:
        """See :class:`Source`."""
        return self.inputs[rows]

    def checksum(self) -> str:
        """See :class:`Source`."""
        digest = hashlib.sha256(f"{tuple(self.inputs.shape)} {self.inputs.dtype}".encode())
        digest.update(self.inputs.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """See :class:`Source`: the row's number, which is all that is known."""
        return [f"row {row}" for row in rows.tolist()]


class ExampleSet(Dataset[Batch | LabeledBatch]):
    """Some rows of a source, fetched a batch at a time.

    Args:
        source: Where they lie.
        rows: (n,) int64, which ones.
        labels: (n,) int64, their labels, -1 where unknown.
        pool: Whether its batches are those of the pool, which carry no labels.
    """

    features: FeatureTable | None = None
    """What batches hold instead of raw inputs, where a frozen encoder has seen the examples already."""

    def __init__(self, source: Source, rows: Tensor, labels: Tensor, pool: bool = False) -> None:
        self.source, self.rows, self.labels, self.pool = source, rows, labels, pool

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, positions: Tensor | slice = slice(None)) -> Inputs:
        """Raw inputs at some positions of the list, (n,) int64, or at all."""
        return self.source.fetch(self.rows[positions])

    def describe(self, positions: Tensor | slice = slice(None)) -> list[str]:
        """What a person knows the examples at some positions of the list by, (n,) int64, or at all."""
        return self.source.describe(self.rows[positions])

    def __getitems__(self, positions: Sequence[int]) -> Batch | LabeledBatch:
        """The batch at these positions of the list."""
        row = torch.as_tensor(positions, dtype=torch.int64)
        inputs = (self.features or self.source).fetch(self.rows[row])
        _refuse_not_finite(inputs, self.source, self.rows[row])
        return Batch(inputs, row) if self.pool else LabeledBatch(inputs, self.labels[row])


def _refuse_not_finite(inputs: Inputs, source: Source, rows: Tensor) -> None:
    """A loss that is not finite would be put down to the learning rate."""
    for values in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
        if isinstance(values, Tensor) and values.is_floating_point() and not values.isfinite().all():
            bad = rows[~values.reshape(len(values), -1).isfinite().all(1)]
            others = f" and {len(bad) - 1} more of its batch" if len(bad) > 1 else ""
            raise UserError(
                f"data: {source.describe(bad[:1])[0]}{others} holds NaN or infinity; repair it or leave it out"
            )
