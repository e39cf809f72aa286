"""Weights that another run has learned."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_weighting.errors import UserError


def read_weights(path: Path, unlabeled: Tensor) -> Tensor:
    """λ of some examples from a run's ``weights.parquet``.

    Args:
        path: The table.
        unlabeled: (|U|,) int64, their rows in the data set.

    Returns:
        (|U|,) float32.

    Raises:
        UserError: If it cannot be read, or lacks one of them.
    """
    given = f"model.weighting.weights={path}"
    try:
        table = pq.read_table(path.expanduser(), columns=["index", "weight"])
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{given}: cannot be read ({reason}); give a run's weights.parquet") from None
    index, order = torch.from_numpy(table["index"].to_numpy().copy()).sort()
    if not len(index):
        raise UserError(f"{given}: holds no weights; give a run's weights.parquet")
    place = torch.searchsorted(index, unlabeled).clamp(max=len(index) - 1)
    missing = int((index[place] != unlabeled).sum())
    if missing:
        raise UserError(
            f"{given}: has no weight for {missing} of the {len(unlabeled)} unlabelled examples; give that of a run on "
            "the same data and split"
        )
    weights = torch.from_numpy(table["weight"].to_numpy().copy()).float()
    return weights[order][place]
