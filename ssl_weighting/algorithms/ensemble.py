"""Ensemble: the pool's shape and the classifier, each a source of pseudo-labels, and what they agree on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_weighting.algorithms.base import Survey
from ssl_weighting.algorithms.label_propagation import LabelPropagation
from ssl_weighting.probe import fit_probe


class Ensemble(LabelPropagation):
    """Label propagation and a linear probe, multiplied: an example counts as far as both agree.

    With q of the graph (see :class:`~ssl_weighting.algorithms.label_propagation.LabelPropagation`) and p of the
    classifier, the pseudo-label is q·p, made to sum to one (a product of experts: Hinton 2002, "Training products of
    experts by minimizing contrastive divergence"). Where they contradict each other it is flat, and so counts little.
    Before the first step p is a linear probe's, trained on the labels alone; later the averaged θ's.

    Args:
        surveys: How many times the pool is looked at in a run, at even distances.
        kwargs: See :class:`~ssl_weighting.algorithms.label_propagation.LabelPropagation`.
    """

    def __init__(self, surveys: int = 4, **kwargs: float) -> None:
        super().__init__(surveys=surveys, **kwargs)  # type: ignore[arg-type]

    def pseudo_labels(self, seen: Survey) -> Tensor:
        """q·p, (|U|, C), rows that sum to one."""
        spread = super().pseudo_labels(seen).log().clamp(min=-14)
        own = seen.probabilities if seen.step else _by_labels(seen)
        return (spread + own.to(spread).log().clamp(min=-14)).softmax(1)


def _by_labels(seen: Survey) -> Tensor:
    """Probabilities (|U|, C) of a probe that was trained on the labels alone."""
    features, labels = seen.features.numpy(), seen.labels.numpy().astype(np.int64)
    probe = fit_probe(features[seen.labeled.numpy()], labels)
    return torch.from_numpy(probe.probabilities(features)).float()
