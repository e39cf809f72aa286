"""FreeMatch (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled, one_hot_like
from ssl_weighting.algorithms.selection import SelfAdaptive, WeakToStrong, weak_strong_terms
from ssl_weighting.protocols import Model
from ssl_weighting.terms import Distance, LossTerm


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


class FreeMatch(WeakToStrong):
    """FixMatch with thresholds that follow the network's confidence, and a push towards all classes.

    With q = p(y | weak(u)), c = argmax q, and s, p̃ and h̃ as
    :class:`~ssl_weighting.algorithms.selection.SelfAdaptive` has them, the losses of an unlabelled example and
    of the batch are (Wang et al. 2023)

        w · s · H(onehot(c), p(y | strong(u)))
        w_f · Σ_c a_c log b_c                       a ∝ p̃ / h̃,  b ∝ p̄ / h̄

    where p̄ and h̄ are the mean prediction and the mean of its argmax over the strong views with s = 1.

    The second loss L, of all selected examples together, is told as one of each: its gradient reaches an
    example only through the mean p̄, so it is that of Σ_c p_c · ∂L/∂p̄_c, averaged over them. λ then weighs
    an example's part in it. (As p̄ · ∂L/∂p̄ = 0, L is added to every cost: no gradient changes, and the mean
    cost is L.)

    Args:
        fairness_coefficient: w_f.
        momentum: Decay of the running averages behind s, p̃ and h̃.
        max_threshold: Upper limit of τ, the average confidence that s compares to; 0.95 on SVHN.
        options: ``coefficient`` and ``strong``; see :class:`~ssl_weighting.algorithms.selection.WeakToStrong`.
    """

    def __init__(
        self,
        fairness_coefficient: float = 0.001,
        momentum: float = 0.999,
        max_threshold: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.fairness_coefficient = checks.coefficient(
            "model.algorithm.fairness_coefficient", fairness_coefficient
        )
        self.selection = SelfAdaptive(momentum, max_threshold)

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.selection.prepare(num_classes)

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        outputs = model.joint(labeled.inputs, *unlabeled.views.values(), constant=(1,))
        selected, goal = self.selection.select(outputs[1].probabilities(), context.learning)
        supervised, consistency = weak_strong_terms(outputs, labeled, unlabeled, selected, self.coefficient)
        if not self.fairness_coefficient:
            return [supervised, consistency]
        mask = consistency.mask
        fairness = replace(
            consistency,
            name="fairness",
            target=fairness_cost(outputs[2].probabilities(), mask, goal).expand_as(consistency.target),
            distance=EXPECTED_COST,
            mask=mask * len(mask) / mask.sum().clamp(min=1),
            scale=self.fairness_coefficient,
            anchor=None,
        )
        return [supervised, fairness, consistency]


def fairness_cost(probabilities: Tensor, selected: Tensor, goal: Tensor) -> Tensor:
    """L + ∂L/∂p̄ of the fairness loss L, (C,): the costs whose mean over the selected predictions is L.

    Args:
        probabilities: Of the strong views, (B, C).
        selected: (B,), floating, 1 where an example counts, else 0.
        goal: p̃ / h̃, (C,).
    """
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
