"""What the methods of FixMatch's family share: which unlabelled examples count, by their weak views; the two losses.

Shapes: B examples, C classes, |U| rows of Λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Algorithm,
    Context,
    Labeled,
    Show,
    Unlabeled,
    one_hot_like,
    supervised_term,
    unlabeled_term,
    update_rates,
)
from ssl_weighting.augment import Cutout, RandAugment
from ssl_weighting.distributed import all_processes
from ssl_weighting.protocols import Forward, View
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm


class FixedThreshold:
    """1[max q ≥ τ], the same τ for all (Sohn et al. 2020, Eq. 4).

    Args:
        threshold: τ, least probability of the label; ``None`` selects every example.
        inclusive: Whether τ itself is enough.

    Raises:
        UserError: If the threshold is no fraction.
    """

    def __init__(self, threshold: float | None, *, inclusive: bool = True) -> None:
        self.threshold = (
            None if threshold is None else checks.fraction("model.algorithm.threshold", threshold)
        )
        self.inclusive = inclusive

    def select(self, probabilities: Tensor) -> Tensor:
        """The mask of weak predictions q (B, C): (B,), bool."""
        confidence = probabilities.amax(-1)
        if self.threshold is None:
            return torch.ones_like(confidence, dtype=torch.bool)
        return confidence >= self.threshold if self.inclusive else confidence > self.threshold


class Curriculum(nn.Module):
    """1[max q ≥ M(β_c) τ], c = argmax q: a threshold for each class, by what the class has won so far.

    Zhang et al. 2021:

        M(β) = β / (2 − β)        β_c = σ_c / max( max_k σ_k, |U| − Σ_k σ_k )

    where σ_c counts the examples of U that were last sure (max q ≥ τ) of class c; those that never were sure
    of any make the threshold warm up. The batch at hand counts from the next one on. What every example was
    last sure of is kept in ``learned``, int16 (|U|,), −1 at first: two bytes an example.

    Args:
        threshold: τ, least probability of the label of a class that has been learned, inclusive.

    Raises:
        UserError: If the threshold is no fraction.
    """

    learned: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = checks.fraction("model.algorithm.threshold", threshold)

    def prepare(self, num_unlabeled: int) -> None:
        """Register the buffer, of |U| rows."""
        self.register_buffer("learned", torch.full((num_unlabeled,), -1, dtype=torch.int16))

    def select(self, probabilities: Tensor, index: Tensor, learning: bool) -> Tensor:
        """The mask of a batch.

        Args:
            probabilities: q, weak predictions, (B, C).
            index: Rows of Λ, (B,), int64.
            learning: Whether to note what the batch is sure of.

        Returns:
            (B,), bool.
        """
        confidence, label = probabilities.max(-1)
        effect = self.learning_effect(probabilities.shape[-1])
        thresholds = self.threshold * effect / (2 - effect)
        mask = confidence >= thresholds[label]
        if learning:
            self._remember(index, torch.where(confidence >= self.threshold, label, -1))
        return mask

    def learning_effect(self, num_classes: int) -> Tensor:
        """β of every class, (C,), float32."""
        place = self.learned.long() + 1  # the unused ones come first
        counts = torch.zeros(num_classes + 1, device=place.device)
        counts.index_add_(0, place, torch.ones_like(place, dtype=counts.dtype))
        return counts[1:] / counts.max()

    def _remember(self, index: Tensor, sure_of: Tensor) -> None:
        """Note the class (B,) that the rows ``index`` (B,) are sure of; −1 leaves a row as it was."""
        index, sure_of = all_processes(index), all_processes(sure_of)
        newest = torch.where(sure_of >= 0, sure_of.to(self.learned.dtype), self.learned[index])
        self.learned[index] = newest


class SelfAdaptive(nn.Module):
    """s = 1[max q ≥ τ · p̃_c / max p̃], c = argmax q: thresholds that follow the network's confidence.

    Running averages of decay m over the weak views (Wang et al. 2023), which take in the batch at hand first:

        τ of max q      p̃ of q      h̃ of onehot(c)

    They are kept in ``level`` (), ``prediction`` (C,) and ``histogram`` (C,), float32, 1/C at first.

    Args:
        momentum: m.
        max_threshold: Upper limit of τ.

    Raises:
        UserError: If one of them is no fraction.
    """

    level: Tensor
    prediction: Tensor
    histogram: Tensor

    def __init__(self, momentum: float, max_threshold: float) -> None:
        super().__init__()
        self.momentum = checks.fraction("model.algorithm.momentum", momentum)
        self.max_threshold = checks.fraction("model.algorithm.max_threshold", max_threshold)

    def prepare(self, num_classes: int) -> None:
        """Register the buffers, for C classes."""
        self.register_buffer("level", torch.tensor(1 / num_classes))  # τ
        self.register_buffer("prediction", torch.full((num_classes,), 1 / num_classes))  # p̃
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes))  # h̃

    def select(self, probabilities: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
        """The mask of a batch, and which classes fairness is to push.

        Args:
            probabilities: q, weak predictions, (B, C).
            learning: Whether to keep the averages.

        Returns:
            (B,), bool; and p̃ / h̃, (C,), of the dtype of ``probabilities``.
        """
        everywhere = all_processes(probabilities)
        confidence, label = everywhere.max(-1)
        level = _moved(self.level, confidence.mean(), self.momentum).clamp(max=self.max_threshold)
        prediction = _moved(self.prediction, everywhere.mean(0), self.momentum)
        histogram = _moved(self.histogram, one_hot_like(label, everywhere).mean(0), self.momentum)
        if learning:
            self.level.copy_(level)
            self.prediction.copy_(prediction)
            self.histogram.copy_(histogram)
        confidence, label = probabilities.max(-1)
        return confidence >= (level * prediction / prediction.max())[label], prediction / histogram


class TruncatedGaussian(nn.Module):
    """g(max q̂): the less sure an example is, the less it counts; no example is left out.

    Chen et al. 2023:

        q̂ ∝ q / (C p̃)                                        uniform alignment
        g(c) = exp( −n² min(0, c − μ)² / (2 σ²) )

    where p̃, μ and σ² are running averages, of decay m, of q and of the mean and the variance of max q̂ over
    a batch. They take in the batch at hand first, and are kept in ``prediction`` (C,), ``mean`` () and
    ``variance`` (), float32; p̃ starts as the first batch's mean (NaN until then), μ at 1/C, σ² at 1.

    Args:
        momentum: m.
        num_sigma: n.

    Raises:
        UserError: If m is no fraction, or n not above 0.
    """

    prediction: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, momentum: float, num_sigma: float) -> None:
        super().__init__()
        self.momentum = checks.fraction("model.algorithm.momentum", momentum)
        self.num_sigma = checks.positive("model.algorithm.num_sigma", num_sigma)

    def prepare(self, num_classes: int) -> None:
        """Register the buffers, for C classes."""
        self.register_buffer("prediction", torch.full((num_classes,), float("nan")))  # p̃, no batch seen
        self.register_buffer("mean", torch.tensor(1 / num_classes))  # μ
        self.register_buffer("variance", torch.tensor(1.0))  # σ²

    def select(self, probabilities: Tensor, learning: bool) -> Tensor:
        """The mask of a batch.

        Args:
            probabilities: q, weak predictions, (B, C).
            learning: Whether to keep the averages.

        Returns:
            (B,), in [0, 1], of the dtype of ``probabilities``.
        """
        everywhere = all_processes(probabilities)
        newest = everywhere.mean(0)
        moved = _moved(self.prediction, newest, self.momentum)
        prediction = torch.where(self.prediction.isnan(), newest, moved)
        confidence = aligned(everywhere, prediction).amax(-1)
        spread = confidence.var(correction=1 if len(confidence) > 1 else 0)
        mean = _moved(self.mean, confidence.mean(), self.momentum)
        variance = _moved(self.variance, spread, self.momentum)
        if learning:
            self.prediction.copy_(prediction)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
        below = (aligned(probabilities, prediction).amax(-1) - mean).clamp(max=0)
        return torch.exp(-(self.num_sigma**2) * below**2 / (2 * variance))


def _moved(average: Tensor, newest: Tensor, momentum: float) -> Tensor:
    """A running average with the newest value taken in, of the newest one's shape and dtype."""
    return torch.lerp(newest, average.to(newest.dtype), momentum)


def aligned(probabilities: Tensor, prediction: Tensor) -> Tensor:
    """Predictions (B, C) whose mean would be uniform, were ``prediction`` (C,) their mean now."""
    weighted = probabilities * (1 / len(prediction) + 1e-6) / (prediction + 1e-6)
    return weighted / weighted.sum(-1, keepdim=True)


def strong_steps(
    strong: Sequence[nn.Module | str] | None, policy: Literal["fixmatch", "uda"] = "fixmatch"
) -> tuple[View, nn.ModuleList]:
    """The steps of a strong view, and those of them that are modules, for the method to register.

    Args:
        strong: The steps; ``None`` for RandAugment and a 16-pixel cutout.
        policy: Whose RandAugment that is.
    """
    steps: View = tuple([RandAugment(policy), Cutout(16)] if strong is None else strong)
    return steps, nn.ModuleList(step for step in steps if isinstance(step, nn.Module))


class WeakToStrong(Algorithm):
    """A method that compares the strong view of an example to the hard label of its weak view, as FixMatch does.

    Args:
        coefficient: w, weight of the whole unlabelled loss (λ_u of the FixMatch paper).
        strong: Strong augmentations, applied in turn after the weak ones; default RandAugment (2 of 14
            operations) and a 16-pixel cutout. For texts by name, such as ``tf_idf``.
    """

    def __init__(self, coefficient: float = 1.0, strong: list[nn.Module | str] | None = None) -> None:
        super().__init__()
        self.coefficient = checks.coefficient("model.algorithm.coefficient", coefficient)
        steps, self.strong = strong_steps(strong)
        self.views = {"weak": ("weak",), "strong": ("weak", *steps)}

    def after_step(self, show: Show, context: Context) -> None:
        """A CTAugment among the strong augmentations learns its rates."""
        update_rates(self.strong, show, context)


def weak_strong_terms(
    outputs: Sequence[Forward], labeled: Labeled, unlabeled: Unlabeled, mask: Tensor, coefficient: float
) -> list[LossTerm]:
    """FixMatch's two losses (Sohn et al. 2020, Eqs. 3 and 4), ``supervised`` and ``consistency``.

    The second compares the strong view to the hard label of the weak one.

    Args:
        outputs: What the network made of the labelled examples, the weak and the strong views.
        labeled: D'.
        unlabeled: U'.
        mask: (B,), floating or boolean.
        coefficient: Weight of the consistency.

    Returns:
        The two terms, in this order.
    """
    known, weak, strong = outputs
    consistency = hard_label_term("consistency", weak, strong, unlabeled, mask, coefficient)
    return [supervised_term(known, labeled.target), consistency]


def hard_label_term(
    name: str, guessed: Forward, compared: Forward, unlabeled: Unlabeled, mask: Tensor, scale: float
) -> LossTerm:
    """Cross-entropy of a view to the hard label of another, or of its own.

    Args:
        name: What it is called.
        guessed: The view whose likeliest class is the label.
        compared: The view that learns it.
        unlabeled: U'.
        mask: (B,), floating or boolean.
        scale: Coefficient × ramp.
    """
    probabilities = guessed.probabilities()
    confidence, label = probabilities.max(-1)
    target = one_hot_like(label, probabilities)
    return unlabeled_term(
        name, compared, target, CROSS_ENTROPY, unlabeled.row, mask=mask, scale=scale, confidence=confidence,
        anchor=guessed,
    )  # fmt: skip
