"""FlexMatch (Zhang et al. 2021)."""

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
    one_hot_like,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.augment import Cutout, RandAugment
from ssl_weighting.distributed import all_processes
from ssl_weighting.protocols import Model, View
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class FlexMatch(Algorithm):
    """FixMatch with a threshold for each class: the lower, the fewer examples the class has won so far.

    With q = p(y | weak(u)) and c = argmax q, the loss of an unlabelled example is (Zhang et al. 2021)

        w · 1[max q ≥ M(β_c) τ] · H(onehot(c), p(y | strong(u)))        M(β) = β / (2 − β)
        β_c = σ_c / max( max_k σ_k, |U| − Σ_k σ_k )

    where σ_c counts the examples of U that were last sure (max q ≥ τ) of class c; those that never were sure
    of any make the threshold warm up. The batch at hand counts from the next one on. What every example was
    last sure of is kept in ``learned``, int16 (|U|,), −1 at first: two bytes an example.

    Args:
        threshold: τ, least probability of the label of a class that has been learned, inclusive.
        coefficient: w, weight of the whole unlabelled loss.
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14
            operations) and a 16-pixel cutout. For texts by name, such as ``tf_idf``.
    """

    learned: Tensor

    def __init__(
        self, threshold: float = 0.95, coefficient: float = 1.0, strong: list[nn.Module | str] | None = None
    ) -> None:
        super().__init__()
        self.threshold = checked_fraction("model.algorithm.threshold", threshold)
        self.coefficient = checked_coefficient("model.algorithm.coefficient", coefficient)
        steps: View = tuple([RandAugment("fixmatch"), Cutout(16)] if strong is None else strong)
        self.strong = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        self.views = {"weak": ("weak",), "strong": ("weak", *steps)}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.register_buffer("learned", torch.full((num_unlabeled,), -1, dtype=torch.int16))

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, strong = model.joint(
            labeled.inputs, unlabeled.views["weak"], unlabeled.views["strong"], constant=(1,)
        )
        probabilities = weak.probabilities()
        confidence, label = probabilities.max(-1)
        effect = self.learning_effect(probabilities.shape[-1])
        thresholds = self.threshold * effect / (2 - effect)
        mask = confidence >= thresholds[label]
        if context.learning:
            self._remember(unlabeled.index, torch.where(confidence >= self.threshold, label, -1))
        return [
            supervised_term(known, labeled.target),
            unlabeled_term(
                "consistency",
                strong,
                one_hot_like(label, probabilities),
                CROSS_ENTROPY,
                unlabeled.index,
                mask=mask,
                scale=self.coefficient,
                confidence=confidence,
                anchor=weak,
            ),
        ]

    def learning_effect(self, num_classes: int) -> Tensor:
        """β of every class, (C,)."""
        place = self.learned.long() + 1  # the unused ones come first
        counts = torch.zeros(num_classes + 1, device=place.device)
        counts.index_add_(0, place, torch.ones_like(place, dtype=counts.dtype))
        return counts[1:] / counts.max()

    def _remember(self, index: Tensor, sure_of: Tensor) -> None:
        """Note the class (B,) that the rows ``index`` (B,) are sure of; −1 leaves a row as it was."""
        index, sure_of = all_processes(index), all_processes(sure_of)
        newest = torch.where(sure_of >= 0, sure_of.to(self.learned.dtype), self.learned[index])
        self.learned[index] = newest
