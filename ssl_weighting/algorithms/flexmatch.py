"""FlexMatch (Zhang et al. 2021)."""

from __future__ import annotations

from typing import Any

from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled
from ssl_weighting.algorithms.selection import Curriculum, WeakToStrong, weak_strong_terms
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm


class FlexMatch(WeakToStrong):
    """FixMatch with a threshold for each class: the lower, the fewer examples the class has won so far.

    With q = p(y | weak(u)) and c = argmax q, the loss of an unlabelled example is (Zhang et al. 2021)

        w · 1[max q ≥ M(β_c) τ] · H(onehot(c), p(y | strong(u)))

    with M and β as :class:`~ssl_weighting.algorithms.selection.Curriculum` has them.

    Args:
        threshold: τ, least probability of the label of a class that has been learned, inclusive.
        options: ``coefficient`` and ``strong``; see :class:`~ssl_weighting.algorithms.selection.WeakToStrong`.
    """

    def __init__(self, threshold: float = 0.95, **options: Any) -> None:
        super().__init__(**options)
        self.selection = Curriculum(threshold)

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.selection.prepare(num_unlabeled)

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        outputs = model.joint(labeled.inputs, *unlabeled.views.values(), constant=(1,))
        mask = self.selection.select(outputs[1].probabilities(), unlabeled.row, context.learning)
        return weak_strong_terms(outputs, labeled, unlabeled, mask, self.coefficient)
