"""Unsupervised Data Augmentation (Xie et al. 2019)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Unlabeled,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.algorithms.selection import FixedThreshold, strong_steps
from ssl_weighting.distributed import all_processes
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Model
from ssl_weighting.terms import KL_DIVERGENCE, LossTerm


class UDA(Algorithm):
    """The strong view of an example is compared to the sharpened prediction on its plain view.

    With logits z on the plain view and q = softmax(z), the loss of an unlabelled example is

        w · 1[max q > τ] · KL( softmax(z / T) ‖ p(y | strong(u)) )

    Confidence is that of q, before sharpening. All images go through the network in one forward pass.
    Defaults are those of UDA's image code. On IMDB its text code has no sharpening and no confidence mask.

    Args:
        threshold: Least confidence of the unsharpened prediction, exclusive; ``null`` for no mask.
        temperature: T of the sharpening softmax(z / T); 1 for none.
        coefficient: w, weight of the whole unlabelled loss.
        annealing: Training-signal annealing: labelled examples count only while the network gives their class
            less than a threshold that rises from 1/C to 1. Its schedule, or ``null`` for none.
        strong: Strong augmentations, applied in turn before the weak ones, as UDA does; default its
            RandAugment and a 16-pixel cutout. Texts have ``tf_idf`` and ``back_translation``, by name.
    """

    def __init__(
        self,
        threshold: float | None = 0.8,
        temperature: float = 0.4,
        coefficient: float = 1.0,
        annealing: Literal["linear", "exp", "log"] | None = None,
        strong: list[nn.Module | str] | None = None,
    ) -> None:
        super().__init__()
        self.selection = FixedThreshold(threshold, inclusive=False)
        self.temperature = checks.positive("model.algorithm.temperature", temperature, "1 for no sharpening")
        self.coefficient = checks.coefficient("model.algorithm.coefficient", coefficient)
        if annealing not in (None, "linear", "exp", "log"):
            raise UserError(f"model.algorithm.annealing={annealing}: must be linear, exp, log or null")
        self.annealing = annealing
        steps, self.strong = strong_steps(strong, "uda")
        self.views = {"plain": ("weak",), "strong": (*steps, "weak")}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known, plain, strong = model.joint(
            labeled.inputs, unlabeled.views["plain"], unlabeled.views["strong"], constant=(1,)
        )
        probabilities = plain.probabilities()
        target = (probabilities.log() / self.temperature).softmax(-1)
        return [
            supervised_term(
                known, labeled.target, self._annealed(known.probabilities(), labeled.target, context)
            ),
            unlabeled_term(
                "consistency",
                strong,
                target,
                KL_DIVERGENCE,
                unlabeled.row,
                mask=self.selection.select(probabilities),
                scale=self.coefficient,
                confidence=probabilities.amax(-1),
                anchor=plain,
            ),
        ]

    def _annealed(self, probabilities: Tensor, target: Tensor, context: Context) -> Tensor | None:
        """Mask of the labelled examples whose class is not too certain yet, over the share of them."""
        if self.annealing is None:
            return None
        threshold = signal_threshold(self.annealing, context.step / context.total_steps, target.shape[-1])
        kept = ((probabilities * target).sum(-1) <= threshold).to(target.dtype)
        everywhere = all_processes(kept)
        return kept * (len(everywhere) / everywhere.sum().clamp(min=1))


def signal_threshold(schedule: Literal["linear", "exp", "log"], progress: float, num_classes: int) -> float:
    """Training-signal annealing's threshold a(t)·(1 − 1/C) + 1/C (Xie et al. 2019, Sec. 3.2).

    Args:
        schedule: Shape of a.
        progress: t, share of training done, in [0, 1].
        num_classes: C.
    """
    a = {
        "linear": progress,
        "exp": math.exp(5 * (progress - 1)),
        "log": 1 - math.exp(-5 * progress),
    }[schedule]
    return a * (1 - 1 / num_classes) + 1 / num_classes
