"""FreeMatch (Wang et al. 2023)."""

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
from ssl_weighting.protocols import Forward, Model, View
from ssl_weighting.terms import CROSS_ENTROPY, Distance, LossTerm


class ExpectedCost(Distance):
    """Σ_c softmax(z)_c · cost_c, with a cost for each class in place of a target."""

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        return (logits.softmax(-1) * target).sum(-1)

    def gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """softmax(z) ∘ (cost − softmax(z) · cost), (B, C)."""
        p = logits.softmax(-1)
        return p * (target - (p * target).sum(-1, keepdim=True))


EXPECTED_COST = ExpectedCost()


class FreeMatch(Algorithm):
    """FixMatch with thresholds that follow the network's confidence, and a push towards all classes.

    With q = p(y | weak(u)), c = argmax q, and running averages of decay m over the weak views

        τ of max q      p̃ of q      h̃ of onehot(c)

    the losses of an unlabelled example and of the batch are (Wang et al. 2023)

        w · s · H(onehot(c), p(y | strong(u)))      s = 1[max q ≥ τ · p̃_c / max p̃]
        w_f · Σ_c a_c log b_c                       a ∝ p̃ / h̃,  b ∝ p̄ / h̄

    where p̄ and h̄ are the mean prediction and the mean of its argmax over the strong views with s = 1. The
    averages take in the batch at hand first.

    The second loss L, of all selected examples together, is told as one of each: its gradient reaches an
    example only through the mean p̄, so it is that of Σ_c p_c · ∂L/∂p̄_c, averaged over them. λ then weighs
    an example's part in it. (As p̄ · ∂L/∂p̄ = 0, L is added to every cost: no gradient changes, and the mean
    cost is L.)

    Args:
        coefficient: w, weight of the whole unlabelled loss.
        fairness_coefficient: w_f.
        momentum: m.
        max_threshold: Upper limit of τ; 0.95 on SVHN.
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14
            operations) and a 16-pixel cutout. For texts by name, such as ``tf_idf``.
    """

    level: Tensor
    prediction: Tensor
    histogram: Tensor

    def __init__(
        self,
        coefficient: float = 1.0,
        fairness_coefficient: float = 0.001,
        momentum: float = 0.999,
        max_threshold: float = 1.0,
        strong: list[nn.Module | str] | None = None,
    ) -> None:
        super().__init__()
        self.coefficient = checked_coefficient("model.algorithm.coefficient", coefficient)
        self.fairness_coefficient = checked_coefficient(
            "model.algorithm.fairness_coefficient", fairness_coefficient
        )
        self.momentum = checked_fraction("model.algorithm.momentum", momentum)
        self.max_threshold = checked_fraction("model.algorithm.max_threshold", max_threshold)
        steps: View = tuple([RandAugment("fixmatch"), Cutout(16)] if strong is None else strong)
        self.strong = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        self.views = {"weak": ("weak",), "strong": ("weak", *steps)}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.register_buffer("level", torch.tensor(1 / num_classes))  # τ
        self.register_buffer("prediction", torch.full((num_classes,), 1 / num_classes))  # p̃
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes))  # h̃

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, weak, strong = model.joint(
            labeled.inputs, unlabeled.views["weak"], unlabeled.views["strong"], constant=(1,)
        )
        probabilities = weak.probabilities()
        confidence, label = probabilities.max(-1)
        level, prediction, histogram = self._averages(probabilities)
        if context.learning:
            self.level.copy_(level)
            self.prediction.copy_(prediction)
            self.histogram.copy_(histogram)
        selected = (confidence >= (level * prediction / prediction.max())[label]).to(probabilities.dtype)
        terms = [supervised_term(known, labeled.target)]
        if self.fairness_coefficient:
            cost = fairness_cost(strong, selected, prediction / histogram)
            terms.append(
                unlabeled_term(
                    "fairness",
                    strong,
                    cost.expand_as(probabilities),
                    EXPECTED_COST,
                    unlabeled.index,
                    mask=selected * len(selected) / selected.sum().clamp(min=1),
                    scale=self.fairness_coefficient,
                    confidence=confidence,
                )
            )
        terms.append(
            unlabeled_term(
                "consistency",
                strong,
                one_hot_like(label, probabilities),
                CROSS_ENTROPY,
                unlabeled.index,
                mask=selected,
                scale=self.coefficient,
                confidence=confidence,
                anchor=weak,
            )
        )
        return terms

    def _averages(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """τ, p̃ and h̃ with a batch of weak predictions (B, C) taken in."""
        everywhere = all_processes(probabilities)
        confidence, label = everywhere.max(-1)

        def moved(average: Tensor, newest: Tensor) -> Tensor:
            return torch.lerp(newest, average.to(newest.dtype), self.momentum)

        return (
            moved(self.level, confidence.mean()).clamp(max=self.max_threshold),
            moved(self.prediction, everywhere.mean(0)),
            moved(self.histogram, one_hot_like(label, everywhere).mean(0)),
        )


def fairness_cost(strong: Forward, selected: Tensor, goal: Tensor) -> Tensor:
    """L + ∂L/∂p̄ of the fairness loss L, (C,): the costs whose mean over the selected predictions is L.

    Args:
        strong: The strong views.
        selected: (B,), 1 where an example counts, else 0.
        goal: p̃ / h̃, (C,).
    """
    probabilities = strong.probabilities()
    # Sums and not matrix products, which autocast would take in bfloat16.
    share = (selected / selected.sum().clamp(min=1))[:, None]
    argmax = one_hot_like(probabilities.argmax(-1), probabilities)
    histogram = (share * argmax).sum(0)  # h̄
    inverse = torch.where(histogram > 0, 1 / histogram, 0)
    a = goal / goal.sum()
    with torch.enable_grad():
        mean = (share * probabilities).sum(0).requires_grad_()  # p̄
        b = mean * inverse
        b = b / b.sum().clamp(min=torch.finfo(b.dtype).tiny)
        loss = (a * (b + 1e-12).log()).sum()
    return loss.detach() + torch.autograd.grad(loss, mean)[0]
