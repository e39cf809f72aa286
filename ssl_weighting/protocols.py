"""What the parts take each other for: inputs, views, and the classifier as methods and as influences see it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Inputs = Any
"""What a backbone takes for a batch: a tensor (B, ...) or a dictionary of such tensors."""

Step = str | Callable[[Tensor], Tensor]
"""One step of a view: the name of one of the data set's own augmentations (``weak``; a text set has
``paraphrase``), or an augmentation that the method brings along."""

View = tuple[Step, ...]
"""How an example is shown to the network: steps in order; none means as it is."""


class Forward(Protocol):
    """What a forward pass gives: see ``backbones.base.Output``."""

    @property
    def inputs(self) -> Inputs:
        """What the network was given."""
        ...

    @property
    def features(self) -> Tensor:
        """(B, D)."""
        ...

    @property
    def logits(self) -> Tensor:
        """(B, C)."""
        ...

    def probabilities(self) -> Tensor:
        """softmax(logits), detached, (B, C)."""
        ...

    def of(self, head: str) -> Forward:
        """The same with the logits of a further head, one of those that were asked for."""
        ...


class Model(Protocol):
    """The classifier, as a method sees it."""

    __call__: Callable[..., Forward]
    """One batch, the name of a head if it is not the classifier, and those of ``further`` ones, through the network."""

    def joint(
        self, *inputs: Inputs, constant: Collection[int] = (), further: Collection[str] = ()
    ) -> Sequence[Forward]:
        """Several batches in one forward pass (joint batch statistics), an output each.

        ``constant`` are the positions of those that only make targets, ``further`` the names of heads that read the same
        features.
        """
        ...

    def perturbation_like(self, inputs: Inputs) -> Tensor:
        """Normal noise of the shape of what can be perturbed: pixels, or the embeddings of tokens."""
        ...

    def perturb(self, inputs: Inputs, by: Tensor) -> Inputs:
        """The inputs plus a perturbation."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules of the network."""
        ...


class Network(Protocol):
    """The classifier, as influence sees it."""

    __call__: Callable[..., tuple[Inputs, Tensor, Tensor, *tuple[Any, ...]]]
    """Inputs, features (B, D) and logits (B, C) of a batch, and the name of a head if not the classifier."""

    def head(self, name: str) -> LinearHead:
        """A linear head by name."""
        ...


class LinearHead(Protocol):
    """What influence needs of a classification head: logits = basis · (weight · features + bias).

    Attributes:
        weight: (R, D). R = C for an ordinary head.
        bias: (R,), or ``None``.
        basis: (C, R), constant; ``None`` stands for the identity. Appendix E's binary head has (1, −1)ᵀ.
    """

    weight: Tensor
    bias: Tensor | None
    basis: Tensor | None
