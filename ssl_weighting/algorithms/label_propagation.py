"""Label propagation: pseudo-labels from the pool's own shape, and a head that learns them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Survey,
    Unlabeled,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.algorithms.graph import carried, neighbour_graph, propagate, sample_of
from ssl_weighting.protocols import Model
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class LabelPropagation(Algorithm):
    """Every example of the pool is compared to the class that its neighbourhood has.

    Labels spread over the graph of nearest neighbours in the features (Zhou et al. 2004, "Learning with local and global
    consistency"; on deep features Iscen et al. 2019, "Label propagation for deep semi-supervised learning"):

        F ← α S F + (1 − α) Y        S = D^(−1/2) A D^(−1/2),   A_ij = exp(cos(x_i, x_j) / τ)

    Rows of F, made to sum to one, are the pseudo-labels q; 1 − H(q) / log C is how certain they are, and weighs the
    loss (Iscen et al., Eq. 11), scaled to a mean of 1 over the pool. Labelled examples in the pool, which the supervised
    term has already, count 0. The graph is drawn before the first step, and again in the course of training.

    Args:
        neighbours: Edges of an example.
        temperature: τ.
        spread: α, in [0, 1): how far labels reach.
        coefficient: What the term on the pool is multiplied by.
        largest: Most examples that the graph is drawn on, as its cost is their square: of more, an even sample, the
            labelled ones among them, and every other example takes the mean of its nearest there.
        surveys: How many times the pool is looked at in a run, at even distances. With features that do not change, the
            first is enough.
    """

    targets: Tensor
    certainty: Tensor

    def __init__(
        self,
        neighbours: int = 10,
        temperature: float = 0.07,
        spread: float = 0.9,
        coefficient: float = 1.0,
        largest: int = 20_000,
        surveys: int = 1,
    ) -> None:
        super().__init__()
        key = "model.algorithm"
        checks.require(f"{key}.neighbours", neighbours, neighbours >= 1, "must be at least 1")
        checks.require(f"{key}.spread", spread, 0 <= spread < 1, "must be at least 0 and below 1")
        checks.require(
            f"{key}.surveys", surveys, surveys >= 1, "must be at least 1: the first makes the pseudo-labels"
        )
        checks.require(f"{key}.largest", largest, largest >= 2, "must be at least 2")
        self.neighbours, self.spread, self.surveys, self.largest = neighbours, spread, surveys, largest
        self.temperature = checks.positive(f"{key}.temperature", temperature)
        self.coefficient = checks.coefficient(f"{key}.coefficient", coefficient)
        self.views = {"weak": ("weak",)}
        self._drawn: tuple[Tensor, Any] | None = None

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """Register pseudo-labels (|U|, C), at first uniform, and how certain they are (|U|,), at first 0."""
        self.register_buffer("targets", torch.full((num_unlabeled, num_classes), 1 / num_classes))
        self.register_buffer("certainty", torch.zeros(num_unlabeled))

    def survey(self, seen: Survey) -> None:
        """Make the pseudo-labels anew; see :meth:`Algorithm.survey`."""
        targets = self.pseudo_labels(seen).to(self.targets)
        certainty = 1 + torch.xlogy(targets, targets).sum(1) / math.log(targets.shape[1])
        certainty = certainty.clamp(min=0).index_fill(0, seen.labeled.to(certainty.device), 0)
        self.targets.copy_(targets)
        self.certainty.copy_(certainty / certainty.mean().clamp(min=1e-12))

    def pseudo_labels(self, seen: Survey) -> Tensor:
        """q, (|U|, C), rows that sum to one."""
        features, ties = seen.features, (self.neighbours, self.temperature)
        rows = sample_of(len(features), seen.labeled, self.largest)
        if self._drawn is None or not torch.equal(self._drawn[0], features):  # a frozen network's stay
            self._drawn = features, neighbour_graph(features[rows], *ties)[0]
        labeled = torch.searchsorted(rows, seen.labeled)
        shares = propagate(self._drawn[1], labeled, seen.labels, self.targets.shape[1], self.spread)
        return shares if len(rows) == len(features) else carried(features, rows, shares, *ties)

    def share(self, other: Algorithm) -> None:
        """See :meth:`Algorithm.share`: the graph, where it is drawn alike."""
        alike = ("neighbours", "temperature", "largest")
        if isinstance(other, LabelPropagation) and all(getattr(self, x) == getattr(other, x) for x in alike):
            self._drawn = other._drawn

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak = model.joint(labeled.inputs, unlabeled.views["weak"])
        targets, certainty = self.targets[unlabeled.row], self.certainty[unlabeled.row]
        guess = unlabeled_term(
            "propagated",
            weak,
            targets,
            CROSS_ENTROPY,
            unlabeled.row,
            mask=certainty,
            scale=self.coefficient,
            confidence=targets.amax(1),
            anchor=weak,
        )
        return [supervised_term(known, labeled.target), guess]
