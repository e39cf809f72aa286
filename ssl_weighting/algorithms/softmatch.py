"""SoftMatch (Chen et al. 2023)."""

from __future__ import annotations

from torch import nn

from ssl_weighting import checks
from ssl_weighting.algorithms.base import Algorithm, Context, Labeled, Unlabeled
from ssl_weighting.algorithms.selection import TruncatedGaussian, strong_steps, weak_strong_terms
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm


class SoftMatch(Algorithm):
    """FixMatch without a threshold: the less sure an example is, the less it counts, by a truncated Gaussian.

    With q = p(y | weak(u)), the loss of an unlabelled example is (Chen et al. 2023)

        w · g(max q̂) · H(onehot(argmax q), p(y | strong(u)))

    with g and q̂ as :class:`~ssl_weighting.algorithms.selection.TruncatedGaussian` has them.

    Args:
        coefficient: w, weight of the whole unlabelled loss.
        momentum: m, decay of the running averages that g and q̂ are made of.
        num_sigma: n. The paper's truncated Gaussian has n = 1, its code n = 2.
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14
            operations) and a 16-pixel cutout. For texts by name, such as ``tf_idf``.
    """

    def __init__(
        self,
        coefficient: float = 1.0,
        momentum: float = 0.999,
        num_sigma: float = 2.0,
        strong: list[nn.Module | str] | None = None,
    ) -> None:
        super().__init__()
        self.coefficient = checks.coefficient("model.algorithm.coefficient", coefficient)
        self.selection = TruncatedGaussian(momentum, num_sigma)
        steps, self.strong = strong_steps(strong)
        self.views = {"weak": ("weak",), "strong": ("weak", *steps)}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.selection.prepare(num_classes)

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        outputs = model.joint(labeled.inputs, *unlabeled.views.values(), constant=(1,))
        mask = self.selection.select(outputs[1].probabilities(), context.learning)
        return weak_strong_terms(outputs, labeled, unlabeled, mask, self.coefficient)
