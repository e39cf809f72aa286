"""``ssl-weighting embed``: features of examples as a file, by the encoder of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track
from torch import Tensor

from ssl_weighting.app.evaluate import Chosen, choose, opened, read_command
from ssl_weighting.app.predictions import check_out, moved_beside
from ssl_weighting.files import home_path, whole_file

HELP = """\
usage: ssl-weighting embed RUN [--on FOLDER|TABLE|SET] [--out FILE.parquet]

Features, by the encoder of a run, of new images or texts, or of a set of the run: unlabeled, validation, test (default:
test, if there is one). Of a frozen encoder they are as it makes them; of one that was trained, those of the averaged
network. A table with a row an example: index, id (its path or text), features (D numbers, float32)."""
ROWS = 4096
"""Least rows that are written together."""


def main(argv: list[str]) -> int:
    """Write the features of new examples, or of a list of the run's.

    Args:
        argv: ``RUN [--on WHAT] [--out FILE.parquet]`` and options of the run.

    Returns:
        0.

    Raises:
        UserError: On bad input.
    """
    asked = read_command("embed", HELP, argv, ("on", "out", "device"))
    if asked is None:
        return 0
    out = home_path(asked.own["out"]) if "out" in asked.own else None
    if out is not None:
        check_out(out, (".parquet",))
    chosen = choose(asked, opened(asked))
    if out is None:
        path = chosen.beside / f"embeddings-{chosen.name}.parquet"
        fresh = path.with_name(f".new-{path.name}")
        write_features(chosen, fresh)
        out = moved_beside(fresh, path)
    else:
        write_features(chosen, out)
    print(f"{out}: {chosen.size} examples of {chosen.model.feature_dim} features{chosen.unread()}")
    return 0


def write_features(chosen: Chosen, out: Path) -> None:
    """Write features as parquet, a batch at a time.

    Columns: ``index`` (int64, number of the example where it comes from), ``id`` (its path or text), ``features``
    (D float32 numbers; null for an example that could not be read).

    Args:
        chosen: The examples, and the model.
        out: The file.
    """
    features = pa.list_(pa.float32(), chosen.model.feature_dim)
    schema = pa.schema([("index", pa.int64()), ("id", pa.large_string()), ("features", features)])
    batches = -(-len(chosen.rows) // chosen.model.data.evaluation_batch_size)
    progress = track(chosen.model.features_of_part(chosen.part), "Embedding", total=batches)
    with whole_file(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for table in _grouped(_tables(chosen, progress, schema)):
            writer.write_table(table, row_group_size=len(table))


def _tables(chosen: Chosen, batches: Iterable[Tensor], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of all examples in order, those that could not be read among them."""
    start = read = 0
    for features in batches:
        mine = chosen.rows[read : read + len(features)]
        read += len(features)
        stop = int(mine[-1]) + 1
        yield _table(chosen, start, stop, mine - start, features, schema)
        start = stop
    if start < chosen.size:
        nothing = torch.empty(0, chosen.model.feature_dim)
        yield _table(chosen, start, chosen.size, torch.empty(0, dtype=torch.int64), nothing, schema)


def _table(
    chosen: Chosen, start: int, stop: int, places: Tensor, features: Tensor, schema: pa.Schema
) -> pa.Table:
    """Examples ``start`` to ``stop``, of which those at some places (m,) have features (m, D)."""
    values = np.zeros((stop - start, features.shape[1]), np.float32)
    values[places.numpy()] = features.numpy()
    unread = np.ones(stop - start, bool)
    unread[places.numpy()] = False
    columns = [
        pa.array(chosen.index[start:stop].numpy()),
        pa.array(chosen.names(slice(start, stop)), pa.large_string()),
        pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), features.shape[1], mask=pa.array(unread)
        ),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small tables put together until they have ``ROWS`` rows: a file of many small groups is slow to read."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
