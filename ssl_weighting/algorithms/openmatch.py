"""OpenMatch (Saito et al. 2021), for pools that hold examples of no known class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    Unlabeled,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.algorithms.one_vs_all import (
    HEAD,
    PAIR_ENTROPY,
    PAIR_SQUARED_ERROR,
    pair_probabilities,
    supervised_pairs_term,
    yes,
)
from ssl_weighting.algorithms.selection import FixedThreshold, WeakToStrong, hard_label_term
from ssl_weighting.protocols import Forward, Inputs, Model
from ssl_weighting.terms import LossTerm


class OpenMatch(WeakToStrong):
    """FixMatch on the inliers of the pool, which a one-vs-all head tells from outliers.

    With q = p(y | weak(u)), ŷ = argmax q and o_c the one-vs-all head's probability that an example is of class c, the
    losses are (Saito et al. 2021)

        −log o_y − min_(c ≠ y) log(1 − o_c)                                    labelled examples
        w_e · mean over c and two weak views of the entropy of (o_c, 1 − o_c)
        w_c · Σ_c |(o_c, 1 − o_c) − (o'_c, 1 − o'_c)|²                           o, o' of two weak views
        w · 1[o_ŷ > 1/2] · 1[max q ≥ τ] · H(onehot(ŷ), p(y | strong(u)))         mean over the inliers, o_ŷ > 1/2

    The last begins when the first part of training is over.

    What differs: the paper picks the inliers of an epoch beforehand, by the averaged θ, and draws batches of them; here
    they are picked in the batch at hand, by its first weak view and the present θ. The entropy is a mean over the
    classes, as in the authors' code; the paper writes a sum. The third loss is told once for each of the two views, the
    other held fixed: its gradient is the paper's, the logged value twice as large. All views share batch norm's
    statistics.

    λ weighs all of an example's losses. Those of the one-vs-all head do not reach an influence through the classifier's
    last layer.

    Args:
        threshold: τ, least probability of the label, inclusive; 0, as in the authors' code, takes every inlier.
        entropy_coefficient: w_e.
        consistency_coefficient: w_c (1 on CIFAR-100).
        warmup: Share of training before FixMatch's loss begins; the authors' 10 of 512 epochs, which are 10,240 steps:
            in a short run the head wants a larger share.
        options: ``coefficient`` and ``strong``; see :class:`~ssl_weighting.algorithms.selection.WeakToStrong`.
    """

    def __init__(
        self,
        threshold: float = 0.0,
        entropy_coefficient: float = 0.1,
        consistency_coefficient: float = 0.5,
        warmup: float = 10 / 512,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        key = "model.algorithm"
        self.selection = FixedThreshold(threshold)
        self.entropy_coefficient = checks.coefficient(f"{key}.entropy_coefficient", entropy_coefficient)
        self.consistency_coefficient = checks.coefficient(
            f"{key}.consistency_coefficient", consistency_coefficient
        )
        self.warmup = checks.fraction(f"{key}.warmup", warmup)
        self.views = {"weak": ("weak",), "other": ("weak",), "strong": self.views["strong"]}

    def extra_heads(self, num_classes: int) -> Mapping[str, int]:
        """See :meth:`Algorithm.extra_heads`."""
        return {HEAD: 2 * num_classes}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, other, strong = model.joint(labeled.inputs, *unlabeled.views.values(), further=(HEAD,))
        inlier = (own_probability(weak) > 0.5).to(labeled.target.dtype)
        mask = inlier * self.selection.select(weak.probabilities()) * len(inlier) / inlier.sum().clamp(min=1)
        scale = self.coefficient if context.past(self.warmup) else 0.0
        return [
            supervised_term(known, labeled.target),
            supervised_pairs_term(known.of(HEAD), labeled.target),
            *self._pair_terms(weak.of(HEAD), other.of(HEAD), unlabeled.row),
            hard_label_term("consistency", weak, strong, unlabeled, mask, scale),
        ]

    def _pair_terms(self, first: Forward, second: Forward, row: Tensor) -> list[LossTerm]:
        """Entropy of both weak views, and what each differs from the other by."""
        terms = []
        classes = first.logits.shape[1] // 2
        for name, own, other in (("first", first, second), ("second", second, first)):
            target = pair_probabilities(other)
            if self.entropy_coefficient:
                scale = self.entropy_coefficient / (2 * classes)
                terms.append(
                    unlabeled_term(f"entropy_{name}", own, target, PAIR_ENTROPY, row, scale=scale, head=HEAD)
                )
            if self.consistency_coefficient:
                scale = 2 * self.consistency_coefficient  # the distance is a mean over yes and no
                terms.append(
                    unlabeled_term(
                        f"pairs_{name}", own, target, PAIR_SQUARED_ERROR, row, scale=scale, head=HEAD
                    )
                )
        return terms

    def own_scores(self, model: Model, inputs: Inputs) -> Tensor:
        """o_ŷ: the one-vs-all head's probability of the class that the classifier takes an example for."""
        return own_probability(model(inputs, further=(HEAD,)))


def own_probability(output: Forward) -> Tensor:
    """o_ŷ, (B,): how probably an example is of the class ŷ that the classifier takes it for, by the one-vs-all head."""
    label = output.probabilities().argmax(-1, keepdim=True)
    return yes(output.of(HEAD)).gather(1, label).squeeze(1)
