"""FixMatch (Sohn et al. 2020), with RandAugment or CTAugment."""

from __future__ import annotations

from typing import Any

from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled
from ssl_weighting.algorithms.selection import FixedThreshold, WeakToStrong, weak_strong_terms
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm


class FixMatch(WeakToStrong):
    """The strong view of an example is compared to the hard label of its weak view, where that is sure.

    With q = p(y | weak(u)), the loss of an unlabelled example is (Sohn et al. 2020, Eq. 4)

        w · 1[max q ≥ τ] · H(onehot(argmax q), p(y | strong(u)))

    All images go through the network in one forward pass. A :class:`~ssl_weighting.augment.CTAugment` among
    the strong augmentations learns its rates: after every θ step the averaged θ is shown weakly augmented
    labelled images through operations of random strength.

    Args:
        threshold: τ, least probability of the label, inclusive.
        options: ``coefficient`` and ``strong``; see :class:`~ssl_weighting.algorithms.selection.WeakToStrong`.
    """

    def __init__(self, threshold: float = 0.95, **options: Any) -> None:
        super().__init__(**options)
        self.selection = FixedThreshold(threshold)

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        outputs = model.joint(labeled.inputs, *unlabeled.views.values(), constant=(1,))
        mask = self.selection.select(outputs[1].probabilities())
        return weak_strong_terms(outputs, labeled, unlabeled, mask, self.coefficient)
