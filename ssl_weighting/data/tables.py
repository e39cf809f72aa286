"""Tables of texts and labels, from files and from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_weighting.data.labels import as_names, without_pool_marks
from ssl_weighting.data.text_files import COMPRESSED, Choice, TextFile, read_delimited, read_json
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
NAME_COLUMNS = "name yours with --data.text_column and --data.label_column"


class Column(NamedTuple):
    """A column that is wanted.

    Attributes:
        name: Its name; one that differs by case or blanks is taken where there is no other.
        hint: What to do where it is missing.
        is_label: Whether it holds labels, not texts.
    """

    name: str
    hint: str
    is_label: bool = False


def table_ending(path: Path) -> str | None:
    """What kind of table a file is by its name: one of ``ENDINGS``, whatever its case and compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS[:-1] else None
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def read_table(
    name: str,
    split: str,
    text: str,
    label: str,
    hint: str = NAME_COLUMNS,
    known: Sequence[str] | None = None,
) -> pa.Table:
    """Texts and labels of a file, or of a split on the hub; every row, in order.

    Args:
        name: A file, or a name on the hub.
        split: ``train`` or ``test``: the key in ``data`` that names it, and the split on the hub.
        text: Column of the texts; comes back as strings, without missing ones.
        label: Column of the labels; comes back as strings, null where there is none.
        hint: What to do where a column is missing.
        known: The classes, where training data have decided on them.

    Raises:
        UserError: If there is no such file or set, it cannot be read, or it lacks a column.
    """
    path, key = home_path(name), f"data.{split}={name}"
    if text == label:
        raise UserError(f"{key}: the column {text!r} cannot hold both the texts and the labels; {hint}")
    columns = (Column(text, hint), Column(label, hint, is_label=True))
    if table_ending(path) or path.is_file():
        texts, labels = read_columns(path, key, columns)
    else:
        instead = f"give a file, ending in one of {', '.join(ENDINGS)}"
        texts, labels = _of_table(from_hub(name, split, key, instead), key, columns)
    return pa.table({text: texts, label: without_pool_marks(labels, f"{key}: the column {label!r}", known)})


def column_names(path: Path, key: str) -> list[str]:
    """Names of a file's columns.

    Args:
        path: The file.
        key: What it was given as, for messages: option and value.

    Raises:
        UserError: If there is no such file, or it cannot be read.
    """
    names: list[str] = []

    def remember(found: Sequence[str]) -> list[int]:
        names.extend(found)
        return []

    _from_file(path, key, remember)
    return names


def read_columns(path: Path, key: str, columns: Sequence[Column]) -> list[pa.Array]:
    """Columns of a file, every row, in order.

    Args:
        path: The file.
        key: What it was given as, for messages: option and value.
        columns: Those that are wanted, texts first.

    Returns:
        Large strings (n,) for each: texts without missing ones, labels as
        :func:`~ssl_weighting.data.labels.as_names` has them.

    Raises:
        UserError: If there is no such file, it cannot be read, or it lacks a column.
    """
    found = _from_file(path, key, lambda names: [_place(names, column, key) for column in columns])
    return [_checked(values, column, key) for values, column in zip(found, columns, strict=True)]


def _of_table(table: pa.Table, key: str, columns: Sequence[Column]) -> list[pa.Array]:
    places = [_place(table.column_names, column, key) for column in columns]
    return [_checked(table.column(place), column, key) for place, column in zip(places, columns, strict=True)]


def _place(names: Sequence[str], column: Column, key: str) -> int:
    """Where a column is: by its name, or one that differs by case and blanks alone."""
    places = [i for i, name in enumerate(names) if name == column.name]
    places = places or [
        i for i, name in enumerate(names) if name.strip().lower() == column.name.strip().lower()
    ]
    if len(places) > 1:
        raise UserError(f"{key}: {len(places)} of its columns are called {column.name!r}; rename all but one")
    if not places:
        listed = ", ".join(name or "''" for name in names[:20]) + (", ..." if len(names) > 20 else "")
        raise UserError(f"{key}: has no column {column.name!r} but {listed}; {column.hint}")
    return places[0]


def _checked(values: pa.ChunkedArray, column: Column, key: str) -> pa.Array:
    what = f"{key}: the column {column.name!r}"
    if column.is_label:
        return as_names(values, what)
    texts = values.combine_chunks()
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    if pa.types.is_null(texts.type) or pa.types.is_binary(texts.type) or pa.types.is_large_binary(texts.type):
        try:
            texts = texts.cast(pa.large_string())
        except pa.ArrowException:
            raise UserError(f"{what} holds bytes that are no UTF-8; write texts") from None
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise UserError(f"{what} holds {texts.type}, not texts; {column.hint}")
    return pc.fill_null(texts.cast(pa.large_string()), "")


def _from_file(path: Path, key: str, choose: Choice) -> list[pa.ChunkedArray]:
    ending = table_ending(path)
    try:
        if ending == ".parquet":
            return _read_parquet(path, choose)
        if ending in (".json", ".jsonl"):
            return read_json(TextFile(path, key), choose)
        if ending in (".csv", ".tsv"):
            return read_delimited(TextFile(path, key), "\t" if ending == ".tsv" else ",", choose)
    except FileNotFoundError:
        raise UserError(f"{key}: no such file") from None
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise UserError(f"{key}: cannot be read ({one_line(error)[:160]})") from None
    kind = "ends in none of" if path.exists() else "no such file; a table ends in"
    raise UserError(f"{key}: {kind} {', '.join(ENDINGS)}")


def _read_parquet(path: Path, choose: Choice) -> list[pa.ChunkedArray]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    places = choose([name.strip() for name in names])
    table = file.read(columns=[names[place] for place in places])
    return [table.column(names[place]) for place in places]


def from_hub(name: str, split: str, key: str, hint: str) -> pa.Table:
    """A split of a data set on the Hugging Face hub, or of its copy in the local cache; no code of it is run.

    Args:
        name: Its name.
        split: Which split.
        key: What asked for it, for messages: key and value.
        hint: What to do without the hub, for messages.

    Raises:
        UserError: If it is not to be had.
    """
    from datasets import ClassLabel, disable_progress_bars, load_dataset  # slow to import
    from datasets.utils.logging import set_verbosity_error

    set_verbosity_error()
    disable_progress_bars()
    try:
        data = load_dataset(name, split=split)
    except Exception as error:  # the libraries beneath raise whatever the network makes of it
        raise UserError(
            f"{key}: the split {split} of {name} is not to be had from the Hugging Face hub "
            f"({one_line(error)[:160]}); {hint}"
        ) from None
    columns = {}
    for column, feature in data.features.items():
        values = data.data.column(column)
        if isinstance(feature, ClassLabel):  # numbers that stand for names
            names = pa.array(feature.names)
            values = pc.take(names, pc.if_else(pc.less(values, 0), None, values))
        columns[column] = values
    return pa.table(columns)
