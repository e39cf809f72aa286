"""What happened to every unlabelled example so far, written as batches come by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_weighting.distributed import all_processes, process_count
from ssl_weighting.terms import Objective
from ssl_weighting.weighting.row_file import RowFile
from ssl_weighting.weighting.table import Column, Table

NAN = float("nan")
COLUMNS = {
    "updates": Column(0, torch.int32),
    "influence": Column(NAN),
    "pseudo_label": Column(-1, torch.int32),
    "confidence": Column(NAN),
}


class Statistics(NamedTuple):
    """Rows of an :class:`ExampleStats`, (B,) each: see there."""

    updates: Tensor
    influence: Tensor
    pseudo_label: Tensor
    confidence: Tensor


class Predictions(NamedTuple):
    """What unlabelled examples of a batch were compared to.

    Attributes:
        rows: (B,) int64, rows of Λ.
        target: (B, C), the pseudo-label.
        confidence: (B,), how much it is believed; ``None`` for the target's largest entry.
        logits: (B, C), detached, what was compared to it; ``evidence`` weights look at them.
    """

    rows: Tensor
    target: Tensor
    confidence: Tensor | None
    logits: Tensor | None = None


def predictions_of(objective: Objective) -> list[Predictions]:
    """The pseudo-labels of a batch, of every term on unlabelled examples."""
    return [
        Predictions(term.row, term.target, term.confidence, term.logits.detach())
        for term in objective.terms
        if term.row is not None and term.head == "classifier"
    ]


class ExampleStats(Table):
    """Statistics of every unlabelled example.

    Columns, (n,) each: ``updates`` int32, how many Λ steps moved the example; ``influence`` float32, its last
    influence on the validation loss (NaN before the first); ``pseudo_label`` int32 (−1 before the first) and
    ``confidence`` float32 (NaN), the last target's largest entry and its place.

    Args:
        size: n.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
        first: The first of the file's columns that is theirs.
    """

    def __init__(self, size: int, sharded: bool = False, file: RowFile | None = None, first: int = 0) -> None:
        super().__init__(size, COLUMNS, sharded, file, first)

    def gather(self, rows: Tensor) -> Statistics:
        """Statistics of some rows, (B,) int64."""
        return Statistics(*self.read(rows, *Statistics._fields))

    def update_predictions(self, predictions: Sequence[Predictions]) -> None:
        """Note what examples were compared to. What is not finite is not noted.

        Each process hands over what it saw; all of them note it.
        """
        for rows, target, confidence, _ in predictions:
            largest, label = target.max(-1)
            believed = (largest if confidence is None else confidence).float()
            if process_count() > 1:
                seen = torch.stack([rows.double(), label.double(), believed.double()], 1)
                rows, label, believed = (
                    every.to(own)
                    for every, own in zip(all_processes(seen).T, (rows, label, believed), strict=True)
                )
            self._note_prediction(rows, label, believed)

    def _note_prediction(self, rows: Tensor, label: Tensor, believed: Tensor) -> None:
        finite = believed.isfinite()

        def change(labels: Tensor, confidences: Tensor) -> tuple[Tensor, Tensor]:
            known = finite.to(labels.device)
            return (
                torch.where(known, label.to(labels), labels),
                torch.where(known, believed.to(confidences), confidences),
            )

        self.update(rows, ("pseudo_label", "confidence"), change)

    def update_influences(self, rows: Tensor, influences: Tensor) -> None:
        """Note the influences (B,) by which a Λ step moved rows (B,); those of a repeated row add up.

        A row whose influence is zero did not move. All processes hand over the same.
        """
        rows, place = torch.unique(rows, return_inverse=True)
        influences = influences.float()
        total = influences.new_zeros(len(rows)).index_add_(0, place, influences)

        def change(updates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            present = (total != 0).to(updates.device)
            return updates + present.to(updates), torch.where(present, total.to(before), before)

        self.update(rows, ("updates", "influence"), change)
