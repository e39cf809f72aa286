"""The network that saw labels alone, and how sure it is of each example of a pool: the least that others have to beat."""

from __future__ import annotations

from torch import Tensor

from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.protocols import Inputs, Model


class LabelsOnly(Supervised):
    """``Supervised``, whose scores are its largest probabilities (Hendrycks and Gimpel 2017)."""

    def own_scores(self, model: Model, inputs: Inputs) -> Tensor:
        """The largest probability of each example, (B,)."""
        return model(inputs).probabilities().amax(-1)
