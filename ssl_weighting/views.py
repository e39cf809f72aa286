"""Batches as a method and the network see them: views of examples, one-hot labels, memory order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.algorithms.base import Algorithm, Labeled, Unlabeled, supervised_term
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import LabeledBatch
from ssl_weighting.encoder import Encoder, is_cached
from ssl_weighting.protocols import Model, View
from ssl_weighting.terms import LossTerm

Batches = dict[str, Any]
"""Batches by the list that they come from: ``labeled`` and ``validation`` with labels, ``unlabeled`` with rows of Λ."""


@dataclass
class Views:
    """Makes of raw batches what a method wants to see.

    Attributes:
        data: Knows how an example is prepared, augmented and normalised.
        algorithm: Says which views it wants.
        labeled_augmentation: Further steps of the labelled examples' view.
        num_classes: C.
        dtype: Of what the network takes.
        channels_last: Whether images are laid out so.
        encoder: A frozen one, which sees examples before the network does.
    """

    data: SSLData
    algorithm: Algorithm
    labeled_augmentation: nn.ModuleList
    num_classes: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    encoder: Encoder | None = None
    labeled_view: View = field(init=False)

    def __post_init__(self) -> None:
        self.labeled_view = (*self.algorithm.labeled_view, *self.labeled_augmentation)

    def of(self, batch: Batches) -> tuple[Labeled, Unlabeled]:
        """The labelled and the unlabelled part of a batch, in the method's views."""
        pool = batch["unlabeled"]
        views = {name: self._view(pool.inputs, steps) for name, steps in self.algorithm.views.items()}
        return self.labeled(batch["labeled"], self.labeled_view), Unlabeled(pool.row, views)

    def labeled(self, batch: LabeledBatch, steps: View) -> Labeled:
        """Labelled examples in a view."""
        return Labeled(self._view(batch.inputs, steps), self.one_hot(batch.labels))

    def show(self, batch: Batches) -> Any:
        """A function that shows the labelled examples of a batch in any view."""
        return partial(self.labeled, batch["labeled"])

    def validation_term(
        self, network: Model, batch: LabeledBatch | None, terms: Sequence[LossTerm]
    ) -> LossTerm:
        """L_S(V', θ): cross-entropy on validation examples as they are, or, without any, of those that train.

        Args:
            network: The classifier.
            batch: V', or ``None``.
            terms: The objective's terms, of which the first without rows of Λ is of the labelled examples.
        """
        if batch is None:
            return next(term for term in terms if term.row is None)
        return supervised_term(network(self.plain(batch.inputs)), self.one_hot(batch.labels))

    def one_hot(self, labels: Tensor) -> Tensor:
        """Labels (B,) as targets (B, C)."""
        return F.one_hot(labels, self.num_classes).to(self.dtype)

    def plain(self, raw: Any) -> Any:
        """Examples as they are, without augmentation, as the network takes them."""
        with torch.autocast(_device_of(raw), enabled=False):
            return self._seen(raw, ())

    def shown(self, raw: Any, steps: View) -> Any:
        """Raw inputs in a view, as a frozen encoder takes them, or the network without one."""
        return laid_out(self.data.view(raw, steps), self.dtype, self.channels_last)

    def _view(self, raw: Any, steps: View) -> Any:
        with torch.autocast(_device_of(raw), enabled=False), torch.no_grad():
            return self._seen(raw, steps)

    def _seen(self, raw: Any, steps: View) -> Any:
        if self.encoder is None:
            return self.shown(raw, steps)
        features = self.encoder.of(raw, steps) if is_cached(raw) else self.encoder(self.shown(raw, steps))
        return features.to(self.dtype)


def _device_of(raw: Any) -> str:
    return next(x.device.type for x in pytree.tree_leaves(raw) if isinstance(x, Tensor))


def laid_out(inputs: Any, dtype: torch.dtype, channels_last: bool) -> Any:
    """Inputs in the precision and the memory order that the network takes."""

    def one(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        images = channels_last and x.dim() == 4
        return x.to(dtype, memory_format=torch.channels_last if images else torch.preserve_format)

    return pytree.tree_map(one, inputs)
