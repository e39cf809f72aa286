"""What a person should look at in the data of a run: near duplicates, and labels that the others contradict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ssl_weighting.app.examples import names_of, on_one_line
from ssl_weighting.data.near_duplicates import Pairs, counted, described, find_pairs, leaks
from ssl_weighting.files import whole_file

if TYPE_CHECKING:
    from ssl_weighting.app.baseline import Verdict
    from ssl_weighting.data.module import SSLData

NEAR_DUPLICATES, LABELS = "near_duplicates.csv", "doubtful_labels.csv"
"""Files in a run's folder."""
DOUBTFUL = 0.9
"""Probability of another class from which on a label is worth a line of its own."""
LONGEST = 200
"""Characters of a text in a table."""


class Doubts(NamedTuple):
    """Labels, the most doubtful first.

    Attributes:
        rows: (n,) int64, places in what was ranked.
        given: (n,) float64, probability of the label.
        likelier: (n,) int64, the most probable other class.
        other: (n,) float64, its probability.
    """

    rows: np.ndarray
    given: np.ndarray
    likelier: np.ndarray
    other: np.ndarray


def doubts(held_out: np.ndarray, labels: np.ndarray) -> Doubts:
    """Labels by the probability that a model gives them which has not seen them, the least first.

    Args:
        held_out: (n, C), probabilities by a model that was trained without the example.
        labels: (n,) int64.
    """
    places = np.arange(len(labels))
    given, others = held_out[places, labels], held_out.copy()
    others[places, labels] = -1
    likelier = others.argmax(1)
    order = np.argsort(given, kind="stable")
    return Doubts(order, given[order], likelier[order], others[places, likelier][order])


def keep_findings(directory: Path, data: SSLData, verdict: Verdict | None) -> list[tuple[str, str]]:
    """Search, and write what was found into a run's folder.

    Args:
        directory: The run's folder.
        data: Its data module, set up; the test set too, if there is one.
        verdict: What the labels alone came to, if it was tried.

    Returns:
        Name and value of lines for the summary.

    Raises:
        UnwritableError: No room, no permission.
    """
    lines = []
    descriptors = described(data.sets)
    if isinstance(descriptors, str):
        lines.append(("near duplicates", descriptors))
    else:
        pairs = find_pairs(descriptors)
        _write(duplicate_table(pairs, data), directory / NEAR_DUPLICATES)
        lines.append(("near duplicates", told(pairs)))
    if verdict is not None and verdict.probe.held_out is not None:
        table = label_table(verdict.probe.held_out, data)
        _write(table, directory / LABELS)
        if count := int((table["likelier_probability"].to_numpy() >= DOUBTFUL).sum()):
            value = f"{count}, see {LABELS}: the other labels say another class, with {DOUBTFUL:.0%} and more"
            lines.append(("doubtful labels", value))
    return lines


def told(pairs: list[Pairs]) -> str:
    """Near duplicates in one line, with a warning where the test error flatters."""
    flatters = ": the test error flatters, see --data.drop_test_leaks" if leaks(pairs) else ""
    return "; ".join(counted(pairs)) + flatters or "none found"


def duplicate_table(pairs: list[Pairs], data: SSLData) -> pa.Table:
    """A row an example that has a near duplicate: its part, row and name, and those of the most similar one."""
    columns: dict[str, list[object]] = {
        name: [] for name in ("part", "index", "id", "near_part", "near_index", "near_id", "similarity")
    }
    for some in pairs:
        for prefix, part, rows in (("", some.part, some.rows), ("near_", some.near, some.nearest)):
            columns[f"{prefix}part"] += [part] * len(rows)
            columns[f"{prefix}index"] += rows.tolist()
            names = names_of(data.sets[part].source, rows)
            columns[f"{prefix}id"] += [on_one_line(name, LONGEST) for name in names]
        columns["similarity"] += [round(cosine, 4) for cosine in some.cosines.tolist()]
    kinds = {"index": pa.int64(), "near_index": pa.int64(), "similarity": pa.float64()}
    return pa.table(
        {name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()}
    )


def label_table(held_out: np.ndarray, data: SSLData) -> pa.Table:
    """A row a label, the most doubtful first: the class given, the likelier one, and the probabilities of both."""
    parts = [part for part in ("labeled", "validation") if len(data.sets[part])]
    labels = np.concatenate([data.sets[part].labels.numpy() for part in parts])
    found = doubts(held_out, labels)
    part_of = np.repeat(parts, [len(data.sets[part]) for part in parts])[found.rows]
    rows = np.concatenate([data.sets[part].rows.numpy() for part in parts])[found.rows]
    names = [
        on_one_line(name, LONGEST)
        for part in parts
        for name in names_of(data.sets[part].source, data.sets[part].rows)
    ]
    classes = [on_one_line(name, 60) for name in data.class_names]
    return pa.table(
        {
            "part": part_of.tolist(),
            "index": rows,
            "id": [names[row] for row in found.rows],
            "label": [classes[label] for label in labels[found.rows]],
            "likelier": [classes[label] for label in found.likelier],
            "probability": found.given.round(4),
            "likelier_probability": found.other.round(4),
        }
    )


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as partial:
        csv.write_csv(table, partial)
