"""Pseudo-Label (Lee 2013), with the values of Google's MixMatch and FixMatch code."""

from __future__ import annotations

import torch.nn.functional as F

from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Model,
    Unlabeled,
    checked_fraction,
    supervised_term,
)
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class PseudoLabel(Algorithm):
    """An example is compared to the class that the network itself believes most, where it is sure enough.

    Google's code multiplies losses (B) by a mask (B, 1), which gates no example by itself; here the mask is per
    example, as the method is meant.

    Args:
        threshold: Least probability of the pseudo-label, exclusive.
        coefficient: Weight of the unlabelled loss (1 for CIFAR-10, 2 for SVHN).
        ramp: Share of training over which the coefficient rises linearly from 0; 0 for none.
    """

    def __init__(self, threshold: float = 0.95, coefficient: float = 1.0, ramp: float = 0.4) -> None:
        super().__init__()
        self.threshold = checked_fraction("model.algorithm.threshold", threshold)
        self.ramp = checked_fraction("model.algorithm.ramp", ramp)
        self.coefficient = coefficient
        self.views = {"weak": ("weak",)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak = model.joint(labeled.inputs, unlabeled.views["weak"])
        confidence, label = weak.probabilities().max(-1)
        return [
            supervised_term(known, labeled.target),
            LossTerm(
                "pseudo_label",
                weak.inputs,
                weak.features,
                weak.logits,
                F.one_hot(label, weak.logits.shape[-1]).to(confidence),
                CROSS_ENTROPY,
                (confidence > self.threshold).to(confidence.dtype),
                unlabeled.index,
                scale=self.coefficient * (context.ramp(self.ramp) if self.ramp else 1.0),
                confidence=confidence,
            ),
        ]


