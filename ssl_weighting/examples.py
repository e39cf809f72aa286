"""Unlabelled examples as people look at them: which stand out, what they show, what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ssl_weighting.data.base import SSLData

LARGEST_SIDE = 160
"""Pixels of a picture's longer side; larger ones are made smaller."""


def extremes(weights: pa.Table, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The most down- and the most up-weighted examples; between equal weights the last influence decides.

    Args:
        weights: A row an example: see :func:`ssl_weighting.callbacks.run_files.weights_table`.
        count: How many of each, at most. No example is among both, and none that never moved.

    Returns:
        Positions (≤ count,) int64 of the most harmful and of the most helpful, each the most extreme first.
    """
    weight = weights["weight"].to_numpy().astype(np.float64)
    influence = np.nan_to_num(weights["influence"].to_numpy().astype(np.float64))
    moved = np.flatnonzero(weights["updates"].to_numpy() > 0)
    harmful = _first(moved, weight, -influence, min(count, (len(moved) + 1) // 2))
    helpful = _first(moved, -weight, influence, min(count, len(moved) // 2))
    return harmful, helpful


def _first(rows: np.ndarray, key: np.ndarray, then: np.ndarray, count: int) -> np.ndarray:
    if not count:
        return rows[:0]
    bound = np.partition(key[rows], count - 1)[count - 1]
    candidates = rows[key[rows] <= bound]
    ordered: np.ndarray = candidates[np.lexsort((candidates, then[candidates], key[candidates]))][:count]
    return ordered


def pictures(data: SSLData, positions: np.ndarray) -> list[Tensor] | None:
    """Unlabelled examples as pictures, before augmentation.

    Args:
        data: A data module that is set up.
        positions: (n,) int64, in the unlabelled list.

    Returns:
        For each uint8 (channels, height, width), 1 or 3 channels, no side beyond 160; ``None`` if they are no images.
    """
    unlabeled = data.sets["unlabeled"]
    if not len(positions):
        return None
    images = data.prepare(unlabeled.source.fetch(unlabeled.rows[torch.from_numpy(positions)]))
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, 3):
        return None
    images = images.float()
    side = max(images.shape[2:])
    if side > LARGEST_SIDE:
        images = torch.nn.functional.interpolate(
            images, scale_factor=LARGEST_SIDE / side, mode="bilinear", antialias=True
        )
    return list((images.clamp(0, 1) * 255).round().to(torch.uint8).cpu())


def descriptions(data: SSLData, positions: np.ndarray) -> list[str]:
    """Path or text of unlabelled examples.

    Args:
        data: A data module that is set up.
        positions: (n,) int64, in the unlabelled list.
    """
    unlabeled = data.sets["unlabeled"]
    return unlabeled.source.describe(unlabeled.rows[torch.from_numpy(positions)])


def on_one_line(text: str, length: int) -> str:
    """A text as a terminal or a table cell can show it: one line, no control characters, at most ``length`` long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 1] + "…"
