"""IOMatch (Li et al. 2023), for pools that hold examples of no known class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    Unlabeled,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.algorithms.one_vs_all import HEAD, supervised_pairs_term, yes
from ssl_weighting.algorithms.selection import FixedThreshold, WeakToStrong, aligned
from ssl_weighting.distributed import all_processes
from ssl_weighting.protocols import Inputs, Model
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm

HISTORY = 128
"""Batches over which the mean prediction is taken, as in the authors' code."""
OPEN = "open"
"""What the head of C + 1 classes is called."""


class IOMatch(WeakToStrong):
    """Inliers teach the classifier; inliers and outliers a head of C + 1 classes, the last for all that is unknown.

    With q = p(y | weak(u)) aligned so that all classes are as frequent, o_c the one-vs-all head's probability that
    weak(u) is of class c, and s = Σ_c q_c (1 − o_c), the losses are (Li et al. 2023)

        w_b · (−log o_y − min_(c ≠ y) log(1 − o_c))              labelled examples
        w · 1[s < 1/2] · 1[max q ≥ τ] · H(q, p(y | strong(u)))   inliers
        w_o · 1[max r ≥ τ_o] · H(r, p_open(strong(u)))           r = (q_1 o_1, …, q_C o_C, s), of the C + 1 classes

    where q is divided by the mean prediction on the weak views of the last 128 batches, that at hand among them. The last
    loss begins when the first part of training is over.

    What differs: in the paper the one-vs-all and the open head read a projection of the features by two layers; here
    heads are linear on the features themselves, for influences through them are exact only so. The rotation task of the
    authors' code, which is off by default there, is left out.

    λ weighs both losses of an example. That of the open head does not reach an influence through the classifier's last
    layer.

    Args:
        threshold: τ, least probability of the label, inclusive.
        open_threshold: τ_o, least probability of one of the C + 1 classes, inclusive.
        one_vs_all_coefficient: w_b.
        open_coefficient: w_o.
        warmup: Share of training before the open head's loss begins; the authors' first of 256 epochs.
        options: ``coefficient`` and ``strong``; see :class:`~ssl_weighting.algorithms.selection.WeakToStrong`.
    """

    guesses: Tensor

    def __init__(
        self,
        threshold: float = 0.95,
        open_threshold: float = 0.5,
        one_vs_all_coefficient: float = 1.0,
        open_coefficient: float = 1.0,
        warmup: float = 1 / 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        key = "model.algorithm"
        self.selection = FixedThreshold(threshold)
        self.open_threshold = checks.fraction(f"{key}.open_threshold", open_threshold)
        self.one_vs_all_coefficient = checks.coefficient(
            f"{key}.one_vs_all_coefficient", one_vs_all_coefficient
        )
        self.open_coefficient = checks.coefficient(f"{key}.open_coefficient", open_coefficient)
        self.warmup = checks.fraction(f"{key}.warmup", warmup)

    def extra_heads(self, num_classes: int) -> Mapping[str, int]:
        """See :meth:`Algorithm.extra_heads`."""
        return {HEAD: 2 * num_classes, OPEN: num_classes + 1}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.register_buffer("guesses", torch.zeros(HISTORY, num_classes))  # 0: no batch yet

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, strong = model.joint(
            labeled.inputs, *unlabeled.views.values(), constant=(1,), further=(HEAD, OPEN)
        )
        q = self._aligned(weak.probabilities(), context.learning)
        own = q * yes(weak.of(HEAD))
        unseen = 1 - own.sum(-1, keepdim=True)
        r = torch.cat((own, unseen), -1)
        sure = self.selection.select(q) & (unseen[:, 0] < 0.5)
        open_scale = self.open_coefficient if context.past(self.warmup) else 0.0
        return [
            supervised_term(known, labeled.target),
            supervised_pairs_term(known.of(HEAD), labeled.target, self.one_vs_all_coefficient),
            unlabeled_term(
                "consistency", strong, q, CROSS_ENTROPY, unlabeled.row, mask=sure, scale=self.coefficient,
                anchor=weak,
            ),
            unlabeled_term(
                OPEN, strong.of(OPEN), r, CROSS_ENTROPY, unlabeled.row, mask=r.amax(-1) >= self.open_threshold,
                scale=open_scale, head=OPEN,
            ),
        ]  # fmt: skip

    def _aligned(self, probabilities: Tensor, learning: bool) -> Tensor:
        """Weak predictions (B, C) as q is made of them; the mean prediction is kept where the method learns."""
        newest = all_processes(probabilities).mean(0, keepdim=True)
        guesses = torch.cat((self.guesses[1:], newest.to(self.guesses.dtype)))
        if learning:
            self.guesses.copy_(guesses)
        mean = guesses.sum(0)
        return aligned(probabilities, (mean / mean.sum()).to(probabilities.dtype))

    def own_scores(self, model: Model, inputs: Inputs) -> Tensor:
        """One less the open head's probability of the unknown class."""
        return 1 - model(inputs, head=OPEN).probabilities()[:, -1]
