"""What an SSL method is: the views it wants of every example, and the loss terms it makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_weighting import checks
from ssl_weighting.augment import CTAugment
from ssl_weighting.protocols import Forward, Inputs, Model, View
from ssl_weighting.terms import CROSS_ENTROPY, Distance, LossTerm


class Labeled(NamedTuple):
    """A labelled batch: ``inputs`` in the method's ``labeled_view`` and ``target`` one-hot (B, C), float."""

    inputs: Inputs
    target: Tensor


class Unlabeled(NamedTuple):
    """An unlabelled batch: rows of Λ, ``row`` (B,) int64, and each of the method's ``views`` by name."""

    row: Tensor
    views: Mapping[str, Inputs]


Show = Callable[[View], Labeled]
"""Shows the labelled batch of the step in any view."""


@dataclass(frozen=True)
class Context:
    """Where training stands.

    Attributes:
        step: θ steps done so far.
        total_steps: θ steps of the whole run.
        ema: The classifier with the moving average of θ, in evaluation mode.
    """

    step: int
    total_steps: int
    ema: Model

    def ramp(self, fraction: float) -> float:
        """Linear ramp from 0 to 1 over the first ``fraction`` of training; 1 throughout where that is 0."""
        return min(1.0, self.step / (fraction * self.total_steps)) if fraction else 1.0

    def past(self, fraction: float) -> bool:
        """Whether the first ``fraction`` of training is over."""
        return self.step >= fraction * self.total_steps

    @property
    def learning(self) -> bool:
        """Whether this is a θ step, in which a method may update what it keeps; a Λ step has no gradients."""
        return torch.is_grad_enabled()


@dataclass(frozen=True)
class Survey:
    """The whole pool as the averaged θ sees it, for methods that learn from its shape. Tensors on the CPU.

    Attributes:
        features: (|U|, D), float32, of the examples as they are.
        probabilities: (|U|, C), float32.
        labeled: (n,) int64, rows of the pool that have a label.
        labels: (n,) int64, their labels.
        step: θ steps done so far.
    """

    features: Tensor
    probabilities: Tensor
    labeled: Tensor
    labels: Tensor
    step: int


class Algorithm(nn.Module, ABC):
    """An SSL method.

    It is a module so that what it learns besides θ (augmentation rates, running distributions) is part of the
    checkpoint. It knows nothing of Λ, of optimisers or of the data set.

    Attributes:
        views: The views of every unlabelled example that :meth:`loss_terms` needs, by name.
        labeled_view: The view of the labelled examples.
        surveys: How many times in a run :meth:`survey` is called: before the first step, then at even distances.
    """

    views: Mapping[str, View]
    labeled_view: View = ("weak",)
    surveys: int = 0

    def extra_heads(self, num_classes: int) -> Mapping[str, int]:
        """Linear heads that it needs besides the classifier of C = ``num_classes``, with their number of outputs."""
        return {}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """Register the buffers whose size depends on the data. Called once, before a checkpoint is loaded.

        Args:
            num_unlabeled: |U|, the number of rows of Λ.
            num_classes: C.
        """

    @abstractmethod
    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """The loss terms of one batch, unreduced.

        Called with gradients on for a θ step, and without them (and without changing anything) for a Λ step.
        A term that has a ``row`` has one row for every example of U', in any order: several views of an
        example are several terms, so that their influences on its λ can be added up.

        Args:
            model: The classifier.
            labeled: D'.
            unlabeled: U'.
            context: Where training stands.
        """

    def survey(self, seen: Survey) -> None:
        """Look at the whole pool. Called ``surveys`` times in a run, without gradients, the same in every process.

        What it makes of it belongs into buffers, so that a resumed run has it.

        Args:
            seen: The pool.
        """

    def share(self, other: Algorithm) -> None:
        """Take over what another instance found of the same pool and what no label had a part in; default: nothing."""

    def survey_due(self, context: Context) -> bool:
        """Whether the pool is to be looked at now, before the θ step that comes."""
        if not self.surveys or context.step >= context.total_steps:
            return False
        between = max(1, context.total_steps // self.surveys)
        return context.step % between == 0 and context.step // between < self.surveys

    def own_scores(self, model: Model, inputs: Inputs) -> Tensor | None:
        """How probably each of some examples is of a known class, by what the method itself learns of that.

        Called when training is over, without gradients. Default: ``None``, it learns nothing of it.

        Args:
            model: The classifier with the averaged θ, in evaluation mode.
            inputs: Examples as they are.

        Returns:
            (B,), in [0, 1].
        """
        return None

    def after_step(self, show: Show, context: Context) -> None:
        """Learn what labelled examples teach besides θ. Called after every θ step, without gradients.

        Args:
            show: Gives the labelled batch of the step in any view.
            context: Where training stands, the step included; ``ema`` has followed it.
        """


class RampedAlgorithm(Algorithm):
    """A method whose unlabelled loss comes in by and by, of weight w(t).

    Args:
        coefficient: w after its ramp.
        ramp: Share of training over which w rises linearly from 0; 0 for none.
    """

    def __init__(self, coefficient: float, ramp: float) -> None:
        super().__init__()
        self.coefficient = checks.coefficient("model.algorithm.coefficient", coefficient)
        self.ramp = checks.fraction("model.algorithm.ramp", ramp)

    def scale(self, context: Context) -> float:
        """w(t)."""
        return self.coefficient * context.ramp(self.ramp)


def supervised_term(output: Forward, target: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Cross-entropy of labelled examples: L_S of Eq. 1."""
    mask = torch.ones(len(target), device=target.device) if mask is None else mask
    return LossTerm("supervised", output.inputs, output.features, output.logits, target, CROSS_ENTROPY, mask)


def unlabeled_term(
    name: str,
    output: Forward,
    target: Tensor,
    distance: Distance,
    row: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    confidence: Tensor | None = None,
    anchor: Forward | None = None,
    head: str = "classifier",
) -> LossTerm:
    """A term of unlabelled examples, ℓ_U of Eq. 1. See :class:`~ssl_weighting.terms.LossTerm`.

    Args:
        name: What it is called in logs.
        output: What the network made of the examples.
        target: (B, C), without gradient.
        distance: How logits and target are compared.
        row: (B,), rows of Λ.
        mask: (B,), floating or boolean; default all ones.
        scale: Coefficient × ramp.
        confidence: (B,), the largest probability of the guess behind ``target``.
        anchor: What the network made of the view that ``target`` was guessed from, if it is a guess of each example's
            own class: ``RelativeInfluence`` compares by it.
        head: The linear head that made the logits.
    """
    target = target.detach()
    mask = target.new_ones(len(target)) if mask is None else mask.to(target.dtype)
    return LossTerm(
        name,
        output.inputs,
        output.features,
        output.logits,
        target,
        distance,
        mask,
        row,
        head,
        scale,
        confidence,
        None if anchor is None else anchor.features.detach(),
    )


def one_hot_like(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Labels (B,) as hard targets, of the shape (B, C) and dtype of ``probabilities``."""
    return F.one_hot(labels, probabilities.shape[-1]).to(probabilities.dtype)


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / Σ p^(1/T), (B, C): MixMatch's sharpening (Berthelot et al. 2019, Eq. 7)."""
    return (probabilities.log() / temperature).softmax(-1)


@contextmanager
def paused_statistics(model: Model) -> Iterator[None]:
    """Let batch norm normalise by the batch, as in training, but leave its running statistics as they are.

    Google's codes update them in one forward pass a step. Nothing is copied: the passes inside simply do not
    hand the running statistics to the kernel. Layers in evaluation mode go on using them.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def batch_statistics_of(student: Model, teacher: Model) -> Iterator[None]:
    """Let a teacher's batch norm normalise by the batch where the student's does; no buffer changes."""
    pairs = [
        (t, s.training, t.training)
        for t, s in zip(teacher.modules(), student.modules(), strict=True)
        if isinstance(t, _BatchNorm)
    ]
    for norm, training, _ in pairs:
        norm.training = training
    try:
        with paused_statistics(teacher):
            yield
    finally:
        for norm, _, training in pairs:
            norm.training = training


def update_rates(augmentations: Iterable[nn.Module], show: Show, context: Context) -> None:
    """One step of every CTAugment's rates, by how well the averaged θ recognises probed labelled images.

    Sohn et al. 2020, Sec. 2.3; Berthelot et al. 2020, Sec. 3.2.2.
    """
    for augmentation in augmentations:
        if isinstance(augmentation, CTAugment):
            _update_rates(augmentation, show, context)


def _update_rates(augmentation: CTAugment, show: Show, context: Context) -> None:
    records = []

    def probe(images: Tensor) -> Tensor:
        probed, record = augmentation.probe(images)
        records.append(record)
        return probed

    labeled = show(("weak", probe))
    augmentation.update(records[0], context.ema(labeled.inputs).probabilities(), labeled.target.argmax(-1))
