"""Class probabilities as a file: a row an example, in the order of the examples."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_weighting.app.runs import OWN
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

ENDINGS = (".parquet", ".csv")


def predictions_table(
    index: Tensor,
    names: Sequence[str],
    rows: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
    own: np.ndarray | None = None,
    reject: float = 0.0,
) -> pa.Table:
    """Predictions as a table of n rows.

    Columns: ``index`` (number of the example where it comes from), ``id`` (its path or text), ``class`` (the likeliest,
    by name; null for a rejected example), ``probability`` (of the likeliest class), ``own_probability`` where there is
    one, ``probability_<name>`` for each. All but the first two are null for an example that could not be read.

    Args:
        index: (n,) int64.
        names: What a person knows each example by, n.
        rows: (m,) int64, which of the n were read.
        probabilities: (m, C), of those.
        class_names: C names.
        own: (m,) float32, the probability that an example is of one of the classes.
        reject: Examples whose ``own`` is below this get no class.
    """
    unread = np.ones(len(names), bool)
    unread[rows.numpy()] = False
    whole = torch.zeros(len(names), probabilities.shape[1])
    whole[rows] = probabilities.float().cpu()
    classes = np.asarray(class_names, dtype=object)[whole.argmax(-1).numpy()]
    belongs = np.ones(len(names), np.float32)
    if own is not None:
        belongs[rows.numpy()] = own
    columns = {
        "index": pa.array(index.numpy()),
        "id": pa.array(names, pa.large_string()),
        "class": pa.array(classes, pa.string(), mask=unread | (belongs < reject)),
        "probability": pa.array(whole.amax(-1).numpy(), mask=unread),
    }
    columns |= {} if own is None else {OWN: pa.array(belongs, mask=unread)}
    each = zip(class_names, whole.T.numpy(), strict=True)
    return pa.table(columns | {f"probability_{name}": pa.array(p, mask=unread) for name, p in each})


def check_out(out: Path, endings: Sequence[str] = ENDINGS) -> None:
    """Refuse a file that a table cannot be written to.

    Args:
        out: The file.
        endings: Those that say how.

    Raises:
        UserError: If its ending says nothing, it is there already, or its folder is not.
    """
    if out.suffix.lower() not in endings:
        fault = (
            f"ends in none of {', '.join(endings)}" if len(endings) > 1 else f"does not end in {endings[0]}"
        )
        raise UserError(f"--out {out}: {fault}; give such a name")
    if out.exists():
        raise UserError(f"--out {out}: is there already; remove it, or give another name")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: no such folder {out.parent}; make it first")


def write_predictions(table: pa.Table, out: Path) -> None:
    """Write a table as parquet or CSV, by the file's ending."""
    with whole_file(out) as partial:
        if out.suffix.lower() == ".csv":
            pa_csv.write_csv(table, partial)
        else:
            pq.write_table(table, partial)


def write_beside(table: pa.Table, path: Path) -> Path:
    """Write a table to a path, or, where other predictions are there already, to the first free one beside it.

    Args:
        table: What to write.
        path: ``predictions-NAME.parquet`` in a run's folder.

    Returns:
        Where it is: ``path`` or ``predictions-NAME-2.parquet``.
    """
    fresh = path.with_name(f".new-{path.name}")
    write_predictions(table, fresh)
    return moved_beside(fresh, path)


def moved_beside(fresh: Path, path: Path) -> Path:
    """Give a file that was just written its name, or the first one that is free beside it; see :func:`write_beside`."""
    number, target = 1, path
    while target.exists() and not filecmp.cmp(fresh, target, shallow=False):
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    fresh.replace(target)
    return target
