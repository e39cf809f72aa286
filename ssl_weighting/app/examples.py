"""Unlabelled examples as people look at them: which stand out, what they show, what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from ssl_weighting.image_pixels import as_image

if TYPE_CHECKING:
    from ssl_weighting.data.module import SSLData
    from ssl_weighting.data.source import Source

LARGEST_SIDE = 240
"""Pixels of a picture's longer side; larger ones are made smaller."""


def extremes(
    weights: pa.Table, count: int, initial: float, spread: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The examples that did most harm and that helped most, by their weight; of equal weights, by the last influence.

    An example did harm if its weight fell below the initial one, or stayed there and its influence raises the validation
    loss; it helped if the contrary is true. One that never moved did neither. Where all weights that moved are the same,
    their influence decides alone.

    Args:
        weights: A row an example: see :func:`ssl_weighting.app.callbacks.run_files.weights_table`.
        count: How many of each, at most.
        initial: The weight that all began with.
        spread: Take the classes in turn that they are taken for, and of each the most extreme ones.

    Returns:
        Positions (≤ count,) int64 of the most harmful and of the most helpful, each the most extreme first.
    """
    weight = weights["weight"].to_numpy().astype(np.float64)
    influence = np.nan_to_num(weights["influence"].to_numpy().astype(np.float64))
    moved = np.flatnonzero(weights["updates"].to_numpy() > 0)
    change = weight[moved] - np.float64(np.float32(initial))
    if len(moved) and weight[moved].min() == weight[moved].max():
        change = np.zeros(len(moved))
    harmful = moved[(change < 0) | ((change == 0) & (influence[moved] > 0))]
    helpful = moved[(change > 0) | ((change == 0) & (influence[moved] < 0))]
    classes = _numbers(weights["pseudo_label"]) if spread else None
    return (
        _first(harmful, weight, -influence, count, classes),
        _first(helpful, -weight, influence, count, classes),
    )


def _first(
    rows: np.ndarray, key: np.ndarray, then: np.ndarray, count: int, classes: np.ndarray | None
) -> np.ndarray:
    """The ``count`` of some rows with the smallest keys, in their order; if ``classes`` are given, these in turn."""
    count = min(count, len(rows))
    if not count:
        return rows[:0]
    if classes is None:
        bound = np.partition(key[rows], count - 1)[count - 1]
        rows = rows[key[rows] <= bound]
    ordered: np.ndarray = rows[np.lexsort((rows, then[rows], key[rows]))]
    if classes is not None:
        turn = _turns(classes[ordered])
        ordered = ordered[np.sort(np.argsort(turn, kind="stable")[:count])]
    return ordered[:count]


def _turns(classes: np.ndarray) -> np.ndarray:
    """How many of its own class come before each, (n,)."""
    together = np.argsort(classes, kind="stable")
    _, first, count = np.unique(classes[together], return_index=True, return_counts=True)
    turns = np.empty(len(classes), int)
    turns[together] = np.arange(len(classes)) - np.repeat(first, count)
    return turns


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Class numbers (n,); −1 where there is none."""
    numbers: np.ndarray = pc.fill_null(column, -1).to_numpy()
    return numbers


def none_stands_out(kind: str, weights: pa.Table, initial: float) -> str:
    """What is said where :func:`extremes` finds no example that did harm, or none that helped.

    Args:
        kind: ``harmful`` or ``helpful``.
        weights: See :func:`extremes`; some of them moved.
        initial: See :func:`extremes`.
    """
    weight = weights["weight"].to_numpy()[weights["updates"].to_numpy() > 0]
    did, beyond = ("did harm", "below") if kind == "harmful" else ("helped", "above")
    return (
        f"None {did}: no weight of the {len(weight):,} that moved lies {beyond} the initial {initial:g}; they lie "
        f"from {weight.min():.3g} to {weight.max():.3g}."
    )


class Pictured(Protocol):
    """A :class:`~ssl_weighting.data.source.Source` of image files, of which the network sees less than a person would."""

    folder: str
    """The folder that the files lie in; empty if they have none in common."""

    def names(self, rows: Tensor) -> list[str]:
        """What some rows (n,) int64 are called below ``folder``."""
        ...

    def thumbnails(self, rows: Tensor, side: int) -> list[Image.Image]:
        """The images whole, no side beyond ``side``."""
        ...


def pictures(data: SSLData, positions: np.ndarray) -> list[Image.Image] | None:
    """Unlabelled examples as pictures: thumbnails of their files, or the examples before augmentation.

    Args:
        data: A data module that is set up.
        positions: (n,) int64, in the unlabelled list.

    Returns:
        For each an image, no side beyond ``LARGEST_SIDE``; ``None`` if they are no images.
    """
    chosen = data.sets["unlabeled"]
    return pictures_of(data, chosen.source, chosen.rows[torch.from_numpy(positions)])


def pictures_of(data: SSLData, source: Source, rows: Tensor) -> list[Image.Image] | None:
    """Rows (n,) int64 of a source of a data module as pictures; see :func:`pictures`."""
    if not len(rows):
        return None
    if hasattr(source, "thumbnails"):
        return list(source.thumbnails(rows, LARGEST_SIDE))
    images = data.prepare(source.fetch(rows))
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, 3):
        return None
    thumbnails = [as_image(image) for image in (images.float().clamp(0, 1) * 255).round().to(torch.uint8)]
    for image in thumbnails:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return thumbnails


def pictured(data: SSLData) -> Pictured | None:
    """Where the unlabelled examples come from, if that is image files."""
    source: Any = data.sets["unlabeled"].source
    return source if hasattr(source, "thumbnails") else None


def descriptions(data: SSLData, positions: np.ndarray) -> list[str]:
    """Path or text of unlabelled examples.

    Args:
        data: A data module that is set up.
        positions: (n,) int64, in the unlabelled list.
    """
    return data.sets["unlabeled"].describe(torch.from_numpy(positions))


def names(data: SSLData, positions: np.ndarray) -> list[str]:
    """Text of unlabelled examples, or path below the folder of the data.

    Args:
        data: A data module that is set up.
        positions: (n,) int64, in the unlabelled list.
    """
    chosen = data.sets["unlabeled"]
    return names_of(chosen.source, chosen.rows[torch.from_numpy(positions)])


def names_of(source: Source, rows: Tensor) -> list[str]:
    """Text of rows (n,) int64 of a source, or path below the folder of the data."""
    return list(source.names(rows)) if hasattr(source, "names") else source.describe(rows)


def on_one_line(text: str, length: int) -> str:
    """A text as a terminal or a table cell can show it: one line, no control characters, at most ``length`` long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
