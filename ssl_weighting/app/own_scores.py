"""What a method that learns whether examples belong says of every one of the pool, kept when training is over."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ssl_weighting.app.callbacks.pool_quality import auroc
from ssl_weighting.app.callbacks.run_files import add_column
from ssl_weighting.app.runs import OWN_SCORE
from ssl_weighting.backbones import Classifier
from ssl_weighting.data.module import SSLData
from ssl_weighting.module import SSLModule
from ssl_weighting.survey import own_scores


def keep_own_scores(module: SSLModule, data: SSLData, trainer: Trainer, path: Path) -> None:
    """Add the column ``own_score`` to ``weights.parquet``, and log ``pool/own_auroc_score`` where labels can judge it.

    Nothing where the method has no such scores. Every process must call this; the first one writes.

    Args:
        module: The trained module.
        data: Its data.
        trainer: That trained it.
        path: The file.
    """
    device = trainer.strategy.root_device
    module.to(device)  # a trainer that has ended leaves it on the CPU
    network = cast(Classifier, module.ema.model)
    scores = own_scores(module.algorithm, network, module.views_of(data), device)
    if scores is None or not trainer.is_global_zero:
        return
    add_column(path, OWN_SCORE, scores.numpy())
    area = own_auroc(scores, data.judged_labels(torch.arange(len(scores))), module.num_classes)
    module.record({} if area is None else {"pool/own_auroc_score": area})


def own_auroc(scores: Tensor, labels: Tensor, num_classes: int) -> float | None:
    """Area under the ROC curve of scores (n,), own against foreign examples.

    Args:
        scores: The larger, the more own.
        labels: (n,) int64; −1 where unknown, from ``num_classes`` on foreign.
        num_classes: C.

    Returns:
        ``None`` where one kind lacks.
    """
    known = labels >= 0
    return auroc(scores[known], labels[known] < num_classes)
