"""A look at the whole pool, for methods that learn from its shape, and at what they say of it in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.algorithms.base import Algorithm, Survey
from ssl_weighting.protocols import Inputs, Model
from ssl_weighting.views import Views


@torch.no_grad()
def take_survey(network: nn.Module, views: Views, step: int, device: torch.device) -> Survey:
    """Features and predictions of every unlabelled example, as it is.

    Every process looks at all of the pool, so that all learn the same of it.

    Args:
        network: The classifier with the averaged θ, in evaluation mode.
        views: Knows the data.
        step: θ steps done so far.
        device: Where the network is.
    """
    data = views.data
    assert data.split is not None
    features, probabilities = [], []
    with torch.autocast(device.type, enabled=False):
        for inputs in _pool(views, device):
            seen = cast(Model, network)(inputs)
            features.append(seen.features.float().cpu())
            probabilities.append(seen.probabilities().float().cpu())
    labeled = torch.searchsorted(data.split.unlabeled, data.split.labeled)
    return Survey(
        torch.cat(features), torch.cat(probabilities), labeled, data.sets["labeled"].labels.clone(), step
    )


@torch.no_grad()
def own_scores(method: Algorithm, network: nn.Module, views: Views, device: torch.device) -> Tensor | None:
    """What a method says of every unlabelled example: whether it is of a known class.

    Args:
        method: The method.
        network: The classifier with the averaged θ, in evaluation mode.
        views: Knows the data.
        device: Where the network is.

    Returns:
        (|U|,) float32, on the CPU; ``None`` where the method says nothing of it. See :meth:`Algorithm.own_scores`.
    """
    if type(method).own_scores is Algorithm.own_scores:
        return None
    with torch.autocast(device.type, enabled=False):
        found = [method.own_scores(cast(Model, network), inputs) for inputs in _pool(views, device)]
    return torch.cat([cast(Tensor, scores).float().cpu() for scores in found])


def _pool(views: Views, device: torch.device) -> Iterator[Inputs]:
    """The unlabelled examples as they are, batch by batch."""
    pool, size = views.data.sets["unlabeled"], views.data.evaluation_batch_size
    for start in range(0, len(pool), size):
        batch = pool.__getitems__(range(start, min(start + size, len(pool))))
        raw: Any = pytree.tree_map_only(Tensor, lambda x: x.to(device), batch.inputs)
        yield views.plain(raw)
