"""What a label means: one rule for every kind of file, and for what Python brings.

Only an empty label is the pool: nothing, an empty text, NaN as a number. A number is its shortest form, however it was
written: 1, 1.0 and "1" are one class. Where labels are whole numbers from 0, −1 is the pool too, as in scikit-learn.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ssl_weighting.errors import DataWarning, UserError

WHOLE = re.compile(r"-?(0|[1-9]\d*)")
"""A whole number in its shortest form."""
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
WITH_ZEROS = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
"""A whole number as a column of floating-point numbers has it."""
LARGE = re.compile(r"-?\d(\.\d+)?e\+\d+")
"""A large one, as Python, numpy and pandas write it."""
STAND_INS = {
    *("nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "nil", "none", "missing", "unknown", "?", "-", "-1"),
    *("unlabelled", "unlabeled"),
}
"""What other programs write where there is nothing."""


def as_names(values: pa.ChunkedArray | pa.Array, what: str) -> pa.Array:
    """Labels of any type as names of classes.

    Args:
        values: (n,), as a file has them.
        what: Where they are from, for messages.

    Returns:
        Large strings (n,), null where there is none.

    Raises:
        UserError: If they are lists, or of another type that is no label.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_float16(kind):
        values = values.cast(pa.float32())
    refusal = UserError(f"{what} holds {kind}, not one label a row; give a text or a number in each")
    if pa.types.is_nested(kind) or pa.types.is_duration(kind):
        raise refusal
    try:
        encoded = values.dictionary_encode()
        texts = encoded.dictionary.cast(pa.large_string()).to_pylist()
    except pa.ArrowException:
        raise refusal from None
    names = [_name(value, text) for value, text in zip(encoded.dictionary.to_pylist(), texts, strict=True)]
    found = {name for name in names if name is not None}
    if found and {name.lower() for name in found} <= {"true", "false"}:  # pandas writes True, JSON true
        names = [name and name.lower() for name in names]
    _say_united(texts, names, what)
    return pa.array(names, pa.large_string()).take(encoded.indices)


def _name(value: Any, text: str | None) -> str | None:
    """The class that a label names."""
    if text is None or (isinstance(value, float) and value != value):
        return None
    name = unicodedata.normalize("NFC", text).strip()
    if isinstance(value, float) and value.is_integer():
        name = str(int(value))
    elif whole := WITH_ZEROS.fullmatch(name):
        name = whole[1]
    elif LARGE.fullmatch(name) and float(name).is_integer():
        name = str(int(float(name)))
    return "0" if name == "-0" else name or None


def _say_united(texts: list[str | None], names: list[str | None], what: str) -> None:
    """Two codings of a letter are one class, which is said."""
    by_name: dict[str, str] = {}
    for text, name in zip(texts, names, strict=True):
        if text is None or name is None:
            continue
        first = by_name.setdefault(name, text)
        if unicodedata.normalize("NFC", text).strip() == unicodedata.normalize("NFC", first).strip() and (
            text.strip() != first.strip()
        ):
            _say(f"{what}: the label {name!r} stands there in different Unicode forms, which are one class")


def without_pool_marks(labels: pa.Array, what: str, known: Sequence[str] | None = None) -> pa.Array:
    """Labels without those −1 that mark the pool; says what was read as what.

    −1 is the pool where the other labels are at least two whole numbers from 0, and none is empty: scikit-learn's
    convention. Anywhere else it is a class like any other: beside words, fractions, other negative numbers, beside one
    label only (−1 and 1), or where empty labels mark the pool already.

    Args:
        labels: (n,) from :func:`as_names`.
        what: Where they are from, for messages.
        known: The classes, where they are known; default: found here.

    Returns:
        Large strings (n,), null where there is none.
    """
    counts = Counter(labels.to_pylist())
    empty = counts.pop(None, 0)
    if known is not None:
        if "-1" not in counts or "-1" in known or not all(map(WHOLE.fullmatch, known)):
            return labels
        _say(
            f"{what}: {_rows(counts['-1'])} the label -1, which is no class of the training data: they have none"
        )
        return pc.if_else(pc.equal(labels, "-1"), None, labels)
    others = [name for name in counts if name != "-1"]
    numbered = bool(others) and all(WHOLE.fullmatch(name) and not name.startswith("-") for name in others)
    is_pool = "-1" in counts and numbered and len(others) > 1 and not empty
    if is_pool:
        _say(
            f"{what}: {_rows(counts['-1'])} the label -1, which is read as none, as in scikit-learn: they are the pool, "
            f"and there are {len(others)} classes; if -1 is a class, write it as a word (negative); if it is the pool, "
            "empty labels say so"
        )
        return pc.if_else(pc.equal(labels, "-1"), None, labels)
    if "-1" in counts and numbered:
        why = (
            f"{empty} empty labels are the pool already" if empty else f"the only other label is {others[0]}"
        )
        _say(
            f"{what}: {_rows(counts['-1'])} the label -1, which is a class like any other, since {why}; if it is to be "
            "the pool, leave it empty"
        )
    elif not all(map(WHOLE.fullmatch, others)):
        _say_stand_ins(counts, what)
    _say_alike(others, what)
    return labels


def _rows(count: int) -> str:
    return "1 row has" if count == 1 else f"{count} rows have"


def _say_stand_ins(counts: Counter[str], what: str) -> None:
    for name in counts:
        if name.lower() in STAND_INS:
            _say(
                f"{what}: {_rows(counts[name])} the label {name!r}, which is a class like any other; if these rows are "
                "the pool, leave their labels empty"
            )


def _say_alike(names: Sequence[str], what: str) -> None:
    by_small: dict[str, str] = {}
    for name in names:
        first = by_small.setdefault(" ".join(name.casefold().split()), name)
        if first != name:
            _say(f"{what}: {first!r} and {name!r} are two classes; if they are one, write them alike")


def _say(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=2)


def label_names(labels: pa.Array, what: str) -> tuple[str, ...]:
    """The different labels, numbers in rising order, words in the alphabet's.

    Args:
        labels: (n,) large strings, null where there is none.
        what: Where they are from, for messages.

    Raises:
        UserError: If there are fewer than two.
    """
    names = [name for name in pc.unique(labels).to_pylist() if name is not None]
    if len(names) < 2:
        raise UserError(
            f"{what} holds {len(names)} different label{'s' * (len(names) != 1)}{': ' * bool(names)}{', '.join(names)}; "
            "at least 2 classes are needed"
        )
    if all(map(NUMBER.fullmatch, names)):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def numbers_of(labels: pa.Array, names: Sequence[str], key: str) -> Tensor:
    """Labels as numbers of their names, (n,) int64; −1 where there is none.

    Raises:
        UserError: If one is not among the names.
    """
    numbers = pc.index_in(labels, pa.array(names, pa.large_string()))
    unknown = pc.and_(pc.is_null(numbers), pc.is_valid(labels))
    if pc.any(unknown).as_py():
        first = pc.filter(labels, unknown)[0].as_py()
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(f"{key}: label {first!r} is not among those of data.train: {listed}")
    return torch.from_numpy(pc.fill_null(numbers, -1).cast(pa.int64()).to_numpy(zero_copy_only=False).copy())


def class_numbers(labels: Any, key: str) -> Tensor:
    """Labels from Python as class numbers.

    Args:
        labels: A tensor, an array, a list or a pandas column of whole numbers or truth values; ``None``, NaN and −1
            where unknown.
        key: What they belong to, for messages.

    Returns:
        int64, of the same shape; −1 where unknown.

    Raises:
        UserError: If one is a word or no whole number.
    """
    numbers: Tensor = labels if isinstance(labels, Tensor) else _tensor(labels, key)
    numbers = numbers.detach().cpu()
    if numbers.is_complex():
        raise UserError(f"{key}: labels are complex numbers; give class numbers from 0, and -1 where unknown")
    if not numbers.is_floating_point():
        return numbers.to(torch.int64)
    known = numbers[~numbers.isnan()]
    if (known != known.floor()).any() or known.isinf().any():
        first = float(known[(known != known.floor()) | known.isinf()][0])
        raise UserError(
            f"{key}: the label {first:g} is no class number, and probabilities as labels are not provided for; give "
            "whole numbers from 0, and -1 where unknown"
        )
    return numbers.nan_to_num(-1).to(torch.int64)


def _tensor(labels: Any, key: str) -> Tensor:
    try:
        values = np.asarray(labels)
        if values.dtype == object:
            values = np.array([_number(value) for value in values.ravel()]).reshape(values.shape)
        return torch.from_numpy(
            values.astype(np.float64 if values.dtype.kind == "f" else np.int64, casting="same_kind")
        )
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{key}: labels are words, or of unequal lengths; give a whole number for each example, from 0, and -1 where "
            "unknown, and the words as class_names"
        ) from None


def _number(value: Any) -> float:
    if value is None or type(value).__name__ == "NAType":
        return float("nan")
    if isinstance(value, str | bytes):
        raise TypeError
    return float(value)
