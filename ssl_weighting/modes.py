"""The network during a Λ step: dropout off, batch norm as chosen, nothing compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn


@contextmanager
def evaluation_mode(
    network: nn.Module, batchnorm: Literal["eval", "train"] = "eval", compiled: bool = False
) -> Iterator[None]:
    """Dropout off; batch norm as chosen, its running statistics left alone; nothing compiled.

    Args:
        network: Put back afterwards, each of its modules as it was.
        batchnorm: Normalise by the running statistics (``eval``) or by the batch's (``train``).
        compiled: Whether the network may be compiled.
    """
    torch.clear_autocast_cache()  # which holds low-precision copies of θ from before its last step
    was = {module: module.training for module in network.modules()}
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    if batchnorm == "train":
        for norm in norms:
            norm.train()
            norm.momentum = 0.0
            norm.num_batches_tracked = None
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with eager:
            yield
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
        for module, training in was.items():
            module.training = training
