"""Training on the labelled examples alone: the floor that SSL has to beat."""

from __future__ import annotations

from ssl_weighting.algorithms.base import Algorithm, Context, Labeled, Unlabeled, supervised_term
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm


class Supervised(Algorithm):
    """Cross-entropy on labelled examples; the unlabelled ones are not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.views = {}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        return [supervised_term(model(labeled.inputs), labeled.target)]
