"""What a trained model knows of the data that it was trained on: enough to read others like them, without those data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

Memory = Mapping[str, Any]
"""Plain values by name, as a checkpoint keeps them: ``class_names``, and what a data set learned of its examples."""

_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


class NewExamples(NamedTuple):
    """Examples that no part of a split holds.

    Attributes:
        names: What a person knows each by, n of them: a path, a text.
        rows: (m,) int64, positions among the names of those that could be read.
        source: The m examples that could be read, a :class:`~ssl_weighting.data.source.Source`.
    """

    names: list[str]
    rows: Tensor
    source: Any


@contextmanager
def remembering(memory: Memory) -> Iterator[None]:
    """Data modules that are made inside know their classes from a checkpoint and do not look at training data."""
    token = _MEMORY.set(memory)
    try:
        yield
    finally:
        _MEMORY.reset(token)


def remembered() -> Memory | None:
    """The memory that holds where this is called, if any does."""
    return _MEMORY.get()
