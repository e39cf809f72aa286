"""Ensemble: the pool's shape and the classifier, each a source of pseudo-labels, and what they agree on."""

from __future__ import annotations

from typing import Any

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
        options: See :class:`~ssl_weighting.algorithms.label_propagation.LabelPropagation`.
    """

    def __init__(self, surveys: int = 4, **options: Any) -> None:
        super().__init__(surveys=surveys, **options)

    def pseudo_labels(self, seen: Survey) -> Tensor:
        """q·p, (|U|, C), rows that sum to one."""
        spread = super().pseudo_labels(seen).log().clamp(min=-14)
        own = seen.probabilities if seen.step else _by_labels(seen)
        return (spread + own.to(spread).log().clamp(min=-14)).softmax(1)


def _by_labels(seen: Survey) -> Tensor:
    """Probabilities (|U|, C) of a probe that was trained on the labels alone."""
    deviation, mean = torch.std_mean(seen.features, 0)
    features = ((seen.features - mean) / deviation.clamp(min=1e-6)).numpy()
    probe = fit_probe(features[seen.labeled.numpy()], seen.labels.numpy())
    return torch.from_numpy(probe.probabilities(features)).float()
