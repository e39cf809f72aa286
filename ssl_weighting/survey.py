"""A look at the whole pool, for methods that learn from its shape."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.algorithms.base import Survey
from ssl_weighting.protocols import Model
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
    pool, size = data.sets["unlabeled"], data.evaluation_batch_size
    features, probabilities = [], []
    for start in range(0, len(pool), size):
        batch = pool.__getitems__(range(start, min(start + size, len(pool))))
        raw: Any = pytree.tree_map_only(Tensor, lambda x: x.to(device), batch.inputs)
        with torch.autocast(device.type, enabled=False):
            seen = cast(Model, network)(views.plain(raw))
        features.append(seen.features.float().cpu())
        probabilities.append(seen.probabilities().float().cpu())
    labeled = torch.searchsorted(data.split.unlabeled, data.split.labeled)
    return Survey(
        torch.cat(features), torch.cat(probabilities), labeled, data.sets["labeled"].labels.clone(), step
    )
