"""FixMatch (Sohn et al. 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Model,
    Unlabeled,
    checked_fraction,
    supervised_term,
)
from ssl_weighting.augment import Cutout, RandAugment
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class FixMatch(Algorithm):
    """The strong view of an example is compared to the hard label of its weak view, where that is sure enough.

    Args:
        threshold: τ, least probability of the label, inclusive.
        coefficient: λ_u of the FixMatch paper, the weight of the whole unlabelled loss.
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14 operations)
            and a 16-pixel cutout.
    """

    def __init__(
        self, threshold: float = 0.95, coefficient: float = 1.0, strong: list[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.threshold = checked_fraction("model.algorithm.threshold", threshold)
        self.coefficient = coefficient
        self.strong = nn.ModuleList([RandAugment("fixmatch"), Cutout(16)] if strong is None else strong)
        self.views = {"weak": ("weak",), "strong": ("weak", *self.strong)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, strong = model.joint(
            labeled.inputs, unlabeled.views["weak"], unlabeled.views["strong"]
        )
        confidence, label = weak.probabilities().max(-1)
        return [
            supervised_term(known, labeled.target),
            LossTerm(
                "consistency",
                strong.inputs,
                strong.features,
                strong.logits,
                F.one_hot(label, strong.logits.shape[-1]).to(confidence),
                CROSS_ENTROPY,
                (confidence >= self.threshold).to(confidence.dtype),
                unlabeled.index,
                scale=self.coefficient,
                confidence=confidence,
            ),
        ]
