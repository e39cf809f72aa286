"""The same example in several places: found by content, before a split is drawn."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

NOWHERE = -2
"""The label, for a split, of a row that belongs to no part."""


@dataclass(frozen=True)
class Contents:
    """Examples that can be compared.

    Attributes:
        labels: (n,) int64, −1 where unknown.
        stages: What equal examples have in common, cheap properties first; of a row. The last is the content itself.
        describe: What a person knows a row by.
        noun: What the examples are, in the plural.
        by_chance: Whether different examples may well be equal, as rows of few numbers are.
    """

    labels: Tensor
    stages: Sequence[Callable[[int], Hashable]]
    describe: Callable[[int], str]
    noun: str
    by_chance: bool = False


def of_files(paths: Sequence[str], names: Sequence[str], labels: Tensor) -> Contents:
    """Files: equal ones have the same size, then the same end, then the same sha256; few are read as a whole."""

    def size(row: int) -> Hashable:
        try:
            return os.path.getsize(paths[row])
        except OSError:  # a link to nothing is like no other
            return paths[row]

    return Contents(
        labels,
        (size, lambda row: _end(paths[row]), lambda row: _sha256(paths[row])),
        lambda row: names[row].encode("utf-8", "backslashreplace").decode(),
        "images",
    )


def _end(path: str) -> Hashable:
    try:
        with open(path, "rb") as file:
            file.seek(-min(4096, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
    except OSError:
        return path


def _sha256(path: str) -> Hashable:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path


def of_texts(texts: pa.Array, labels: Tensor) -> Contents:
    """Texts, equal letter for letter."""

    def text(row: int) -> str:
        return str(texts[row].as_py())

    def described(row: int) -> str:
        words = " ".join(text(row).split())
        return f"{words[:57]}..." if len(words) > 60 else words

    return Contents(
        labels,
        (lambda row: hash(text(row)), text),
        lambda row: f"row {row + 1}, {described(row)!r}",
        "texts",
    )


def of_tensor(inputs: Tensor, labels: Tensor) -> Contents:
    """Rows of a tensor (n, ...), equal bit for bit. Pixels are hardly equal by chance; few numbers may be."""
    rows = (
        inputs.detach().reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
        if inputs.numel()
        else None
    )

    def content(row: int) -> bytes:
        return b"" if rows is None else rows[row].tobytes()

    return Contents(
        labels,
        (lambda row: hash(content(row)), content),
        lambda row: f"row {row}",
        "rows",
        by_chance=not (inputs.dtype == torch.uint8 and inputs.dim() >= 3),
    )


@dataclass
class Copies:
    """Rows that are equal to others.

    Attributes:
        repeated: Labelled rows with the first row that has the same content and label.
        contradictory: Labelled rows with the first that has the same content and another label.
        pool: Rows of the pool with what they equal, a labelled or a test example.
        tested: Test rows with the labelled row that they equal.
    """

    repeated: list[tuple[int, int]]
    contradictory: list[tuple[int, int]]
    pool: list[tuple[int, str]]
    tested: list[tuple[int, int]]

    @property
    def left_out(self) -> Tensor:
        """Training rows, int64 (n,), that count once where they stand first, or are no news to the pool."""
        return torch.tensor(sorted(row for row, _ in (*self.repeated, *self.pool)), dtype=torch.int64)


def find_copies(train: Contents, test: Contents | None, known: Iterable[int]) -> Copies:
    """Equal examples among the labelled ones, and of these or the test examples in the pool.

    Copies within the pool are not looked for: they are in one part.

    Args:
        train: All training examples.
        test: All test examples, if there are any; those without a label test nothing.
        known: Classes whose training examples count as labelled; those of others belong to the pool.
    """
    labels = torch.where(torch.isin(train.labels, torch.tensor([*known])), train.labels, -1).tolist()
    sets = [train] if test is None else [train, test]
    rows = [(0, row) for row in range(len(labels))]
    if test is not None:
        rows += [(1, row) for row in (test.labels >= 0).nonzero().flatten().tolist()]
    copies = Copies([], [], [], [])
    for group in _equal(rows, sets, labels):
        first: dict[int, int] = {}
        training = [row for part, row in group if part == 0]
        labelled = [row for row in training if labels[row] >= 0]
        tested = [row for part, row in group if part == 1]
        for row in labelled:
            if labels[row] in first:
                copies.repeated.append((row, first[labels[row]]))
            elif first:
                copies.contradictory.append((row, labelled[0]))
            first.setdefault(labels[row], row)
        original = train.describe(labelled[0]) if labelled else ""
        if not labelled and test is not None:
            original = f"test {test.describe(tested[0])}"
        copies.pool += [(row, original) for row in training if labels[row] < 0]
        copies.tested += [(row, labelled[0]) for row in tested if labelled]
    for pairs in (copies.repeated, copies.contradictory, copies.pool, copies.tested):
        pairs.sort()
    return copies


def _equal(
    rows: list[tuple[int, int]], sets: Sequence[Contents], labels: Sequence[int]
) -> list[list[tuple[int, int]]]:
    """Groups of equal examples, (set, row), that hold a labelled or a test example."""
    groups = [rows]
    for stage in range(len(sets[0].stages)):
        finer: list[list[tuple[int, int]]] = []
        for group in groups:
            by_value: defaultdict[Hashable, list[tuple[int, int]]] = defaultdict(list)
            for part, row in group:
                by_value[sets[part].stages[stage](row)].append((part, row))
            finer += [
                same
                for same in by_value.values()
                if len(same) > 1 and any(part == 1 or labels[row] >= 0 for part, row in same)
            ]
        groups = finer
    return groups


def sentences(copies: Copies, train: Contents, test: Contents | None) -> list[str]:
    """What there is to be said of copies, a line each kind.

    Args:
        copies: What was found.
        train: The training examples.
        test: The test examples, if there are any.
    """
    said, noun, chance = [], train.noun, train.by_chance
    if copies.repeated:
        row, first = copies.repeated[0]
        same = train.describe(row) == train.describe(first)
        said.append(
            f"{_of(copies.repeated, noun)} labelled twice or more, with the same label (first: {train.describe(row)}"
            f"{'' if same else f', a copy of {train.describe(first)}'}): "
            + (
                "copies would validate what trains; if they are copies, keep one"
                if chance
                else "each counts once"
            )
        )
    if copies.contradictory:
        row, first = copies.contradictory[0]
        said.append(
            f"{_of(copies.contradictory, noun)} labelled in two ways (first: {train.describe(row)}, a copy "
            f"of {train.describe(first)}): both labels are used; keep the right one"
        )
    if copies.pool:
        row, original = copies.pool[0]
        said.append(
            f"{_of(copies.pool, noun)} in the pool and labelled or test {noun} as well (first: {train.describe(row)}, "
            f"a copy of {original})" + ("" if chance else ": they are left out of the pool")
        )
    if test is not None and copies.tested:
        row, first = copies.tested[0]
        said.append(
            f"{len(copies.tested)} of {len(test.labels)} test {noun} have a label in training as well (first: "
            f"{test.describe(row)}, a copy of {train.describe(first)}): the test error will be too kind; take others"
        )
    return [f"data: {sentence}" for sentence in said]


def _of(pairs: Sequence[object], noun: str) -> str:
    return f"1 of the {noun} is" if len(pairs) == 1 else f"{len(pairs)} {noun} are"


def without_copies(labels: Tensor, copies: Copies, train: Contents) -> Tensor:
    """Labels to draw a split by, (n,) int64: :data:`NOWHERE` for rows that are left out.

    Args:
        labels: (n,) int64, of all training rows, the first of which were compared.
        copies: What was found.
        train: What was compared.
    """
    if train.by_chance:
        return labels
    labels = labels.clone()
    labels[copies.left_out] = NOWHERE
    return labels
