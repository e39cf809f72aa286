"""Pseudo-Label (Lee 2013), with the values of Google's MixMatch code."""

from __future__ import annotations

from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    RampedAlgorithm,
    Unlabeled,
    paused_statistics,
    supervised_term,
)
from ssl_weighting.algorithms.selection import FixedThreshold, hard_label_term
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm


class PseudoLabel(RampedAlgorithm):
    """An example is compared to the class that the network itself believes most, where it is sure enough.

    With p = p(y | u), the loss of an unlabelled example is

        w(t) · 1[max p > τ] · H(onehot(argmax p), p)

    Google's code multiplies losses (B) by a mask (B, 1), which gates no example by itself; here the mask is
    per example, as the method is meant. Batch norm's running statistics follow the labelled batch alone.

    Args:
        threshold: τ, least probability of the pseudo-label, exclusive.
        coefficient: w after its ramp (1 for CIFAR-10, 2 for SVHN).
        ramp: Share of training over which w rises linearly from 0; 0 for none.
    """

    def __init__(self, threshold: float = 0.95, coefficient: float = 1.0, ramp: float = 0.4) -> None:
        super().__init__(coefficient, ramp)
        self.selection = FixedThreshold(threshold, inclusive=False)
        self.views = {"weak": ("weak",)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known = model(labeled.inputs)
        with paused_statistics(model):
            weak = model(unlabeled.views["weak"])
        mask, scale = self.selection.select(weak.probabilities()), self.scale(context)
        guess = hard_label_term("pseudo_label", weak, weak, unlabeled, mask, scale)
        return [supervised_term(known, labeled.target), guess]
