"""What an SSL method is: the views it wants of every example, and the loss terms it makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ssl_weighting.errors import UserError
from ssl_weighting.terms import CROSS_ENTROPY, Inputs, LossTerm

Step = str | Callable[[Tensor], Tensor]
"""One step of a view: the name of one of the data set's own augmentations (``weak``; a text set has
``paraphrase``), or an augmentation that the method brings along."""

View = tuple[Step, ...]
"""How an example is shown to the network: steps in order; none means as it is."""


class Forward(Protocol):
    """What a forward pass gives: see ``backbones.base.Output``."""

    inputs: Inputs
    features: Tensor
    logits: Tensor

    def probabilities(self) -> Tensor:
        """softmax(logits), detached, (B, C)."""
        ...


class Model(Protocol):
    """The classifier, as a method sees it."""

    def __call__(self, inputs: Inputs, head: str = ...) -> Forward:
        """One batch through the network."""
        ...

    def joint(self, *inputs: Inputs) -> list[Forward]:
        """Several batches in one forward pass (joint batch statistics), an output each."""
        ...


class Labeled(NamedTuple):
    """A labelled batch: ``inputs`` in the method's ``labeled_view`` and ``target`` one-hot (B, C), float."""

    inputs: Inputs
    target: Tensor


class Unlabeled(NamedTuple):
    """An unlabelled batch: rows of Λ, ``index`` (B,) int64, and each of the method's ``views`` by name."""

    index: Tensor
    views: Mapping[str, Inputs]


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
        """Linear ramp from 0 to 1 over the first ``fraction`` of training."""
        return min(1.0, self.step / max(1.0, fraction * self.total_steps))


class Algorithm(nn.Module, ABC):
    """An SSL method.

    It is a module so that what it learns besides θ (augmentation rates, running distributions) is part of the
    checkpoint. It knows nothing of Λ, of optimisers or of the data set.

    Attributes:
        views: The views of every unlabelled example that :meth:`loss_terms` needs, by name.
        labeled_view: The view of the labelled examples.
    """

    views: Mapping[str, View]
    labeled_view: View = ("weak",)

    @abstractmethod
    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """The loss terms of one batch, unreduced.

        Called with gradients on for a θ step, and without them (and without changing anything) for a Λ step.

        Args:
            model: The classifier.
            labeled: D'.
            unlabeled: U'.
            context: Where training stands.
        """


def supervised_term(output: Forward, target: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Cross-entropy of labelled examples: L_S of Eq. 1."""
    mask = torch.ones(len(target), device=target.device) if mask is None else mask
    return LossTerm("supervised", output.inputs, output.features, output.logits, target, CROSS_ENTROPY, mask)


def checked_fraction(name: str, value: float, low: float = 0.0, high: float = 1.0) -> float:
    """``value`` if it lies in [low, high]; else a one-line error that names the argument.

    Raises:
        UserError: If it does not.
    """
    if not low <= value <= high:
        raise UserError(f"{name}={value}: must lie between {low} and {high}")
    return value
