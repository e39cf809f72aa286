"""SoftMatch (Chen et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Unlabeled,
    checked_coefficient,
    checked_fraction,
    checked_positive,
    one_hot_like,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.augment import Cutout, RandAugment
from ssl_weighting.distributed import all_processes
from ssl_weighting.protocols import Model, View
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class SoftMatch(Algorithm):
    """FixMatch without a threshold: the less sure an example is, the less it counts, by a truncated Gaussian.

    With q = p(y | weak(u)), the loss of an unlabelled example of C classes is (Chen et al. 2023)

        w · g(max q̂) · H(onehot(argmax q), p(y | strong(u)))
        q̂ ∝ q / (C p̃)                                        uniform alignment
        g(c) = exp( −n² min(0, c − μ)² / (2 σ²) )

    where p̃, μ and σ² are running averages, of decay m, of q and of the mean and the variance of max q̂ over
    a batch. They take in the batch at hand first; p̃ starts as the first batch's mean, μ at 1/C, σ² at 1.

    Args:
        coefficient: w, weight of the whole unlabelled loss.
        momentum: m.
        num_sigma: n. The paper's truncated Gaussian has n = 1, its code n = 2.
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14
            operations) and a 16-pixel cutout. For texts by name, such as ``tf_idf``.
    """

    prediction: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        coefficient: float = 1.0,
        momentum: float = 0.999,
        num_sigma: float = 2.0,
        strong: list[nn.Module | str] | None = None,
    ) -> None:
        super().__init__()
        self.coefficient = checked_coefficient("model.algorithm.coefficient", coefficient)
        self.momentum = checked_fraction("model.algorithm.momentum", momentum)
        self.num_sigma = checked_positive("model.algorithm.num_sigma", num_sigma)
        steps: View = tuple([RandAugment("fixmatch"), Cutout(16)] if strong is None else strong)
        self.strong = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        self.views = {"weak": ("weak",), "strong": ("weak", *steps)}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.register_buffer("prediction", torch.full((num_classes,), float("nan")))  # p̃, no batch seen
        self.register_buffer("mean", torch.tensor(1 / num_classes))  # μ
        self.register_buffer("variance", torch.tensor(1.0))  # σ²

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, strong = model.joint(
            labeled.inputs, unlabeled.views["weak"], unlabeled.views["strong"], constant=(1,)
        )
        probabilities = weak.probabilities()
        confidence, label = probabilities.max(-1)
        prediction, mean, variance = self._averages(probabilities)
        if context.learning:
            self.prediction.copy_(prediction)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
        below = (_aligned(probabilities, prediction).amax(-1) - mean).clamp(max=0)
        return [
            supervised_term(known, labeled.target),
            unlabeled_term(
                "consistency",
                strong,
                one_hot_like(label, probabilities),
                CROSS_ENTROPY,
                unlabeled.index,
                mask=torch.exp(-(self.num_sigma**2) * below**2 / (2 * variance)),
                scale=self.coefficient,
                confidence=confidence,
                anchor=weak,
            ),
        ]

    def _averages(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p̃, μ and σ² with a batch of weak predictions (B, C) taken in."""
        everywhere = all_processes(probabilities)

        def moved(average: Tensor, newest: Tensor) -> Tensor:
            return torch.lerp(newest, average.to(newest.dtype), self.momentum)

        newest = everywhere.mean(0)
        prediction = torch.where(self.prediction.isnan(), newest, moved(self.prediction, newest))
        confidence = _aligned(everywhere, prediction).amax(-1)
        spread = confidence.var(correction=1 if len(confidence) > 1 else 0)
        return prediction, moved(self.mean, confidence.mean()), moved(self.variance, spread)


def _aligned(probabilities: Tensor, prediction: Tensor) -> Tensor:
    """Predictions (B, C) whose mean would be uniform, were ``prediction`` (C,) their mean now."""
    weighted = probabilities * (1 / len(prediction) + 1e-6) / (prediction + 1e-6)
    return weighted / weighted.sum(-1, keepdim=True)
