"""Tables of texts and labels, from files and from the Hugging Face hub."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_weighting.data.files import one_line
from ssl_weighting.errors import DataWarning, UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(
    name: str,
    split: str,
    text: str,
    label: str,
    mend: str = "name yours with --data.text_column and --data.label_column",
) -> pa.Table:
    """Texts and labels of a file, or of a split on the hub.

    Args:
        name: A file, or a name on the hub.
        split: ``train`` or ``test``: the key in ``data`` that names it, and the split on the hub.
        text: Column of the texts; comes back as strings, without missing ones.
        label: Column of the labels; comes back as strings, null where there is none.
        mend: What to do where a column is missing.

    Raises:
        UserError: If there is no such file or set, it cannot be read, or it lacks a column.
    """
    path = Path(name).expanduser()
    if path.suffix in ENDINGS or path.is_file():
        table = _from_file(path, split, text, label)
    else:
        mend = f"give a file, ending in one of {', '.join(ENDINGS)}"
        table = from_hub(name, split, f"data.{split}={name}", mend)
    for column in (text, label):
        if column not in table.column_names:
            raise UserError(
                f"data.{split}={name}: has no column {column!r} but {', '.join(table.column_names)}; {mend}"
            )
    texts = table[text].combine_chunks()
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise UserError(f"data.text_column={text}: holds {texts.type}, not texts; name another column")
    labels = _as_strings(table[label])
    return pa.table(
        {
            text: pc.fill_null(texts.cast(pa.large_string()), ""),
            label: _composed(labels, f"data.{split}={name}"),
        }
    )


def _composed(labels: pa.Array, what: str) -> pa.Array:
    """Labels in Unicode's composed form: é is one letter, however it was typed."""
    composed = pc.utf8_normalize(labels, form="NFC")
    if len(pc.unique(composed)) < len(pc.unique(labels)):
        twice = pc.filter(composed, pc.not_equal(composed, labels))[0].as_py()
        warnings.warn(
            f"{what}: the label {twice!r} stands there in different Unicode forms, which are one class",
            DataWarning,
            stacklevel=2,
        )
    return composed


def _from_file(path: Path, split: str, text: str, label: str) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix == ".jsonl":
            return pyarrow.json.read_json(path)
        if path.suffix in (".csv", ".tsv"):
            return pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={text: pa.large_string(), label: pa.large_string()}
                ),
            )
    except FileNotFoundError:
        raise UserError(f"data.{split}={path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"data.{split}={path}: cannot be read ({one_line(error)[:160]})") from None
    raise UserError(f"data.{split}={path}: ends in none of {', '.join(ENDINGS)}")


def from_hub(name: str, split: str, key: str, mend: str) -> pa.Table:
    """A split of a data set on the Hugging Face hub, or of its copy in the local cache; no code of it is run.

    Args:
        name: Its name.
        split: Which split.
        key: What asked for it, for messages: key and value.
        mend: What to do without the hub, for messages.

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
            f"({one_line(error)[:160]}); {mend}"
        ) from None
    columns = {}
    for column, feature in data.features.items():
        values = data.data.column(column)
        if isinstance(feature, ClassLabel):  # numbers that stand for names
            names = pa.array(feature.names)
            values = pc.take(names, pc.if_else(pc.less(values, 0), None, values))
        columns[column] = values
    return pa.table(columns)


def _as_strings(labels: pa.ChunkedArray) -> pa.Array:
    values = labels.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):  # whole numbers with holes in between, as pandas writes them
        whole = pc.if_else(pc.is_nan(values), None, values)
        if pc.all(pc.equal(whole, pc.floor(whole))).as_py() is not False:
            values = whole.cast(pa.int64())
    numbers = pa.types.is_integer(values.type)
    strings = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
    missing = pc.equal(strings, "")
    if numbers or pc.all(pc.match_substring_regex(strings, r"^(-?\d+)?$")).as_py() is not False:
        missing = pc.or_(missing, pc.equal(strings, "-1"))
    return pc.if_else(pc.fill_null(missing, True), None, strings)


def label_names(table: pa.Table, label: str, key: str) -> tuple[str, ...]:
    """The different labels, numbers in rising order, words in the alphabet's.

    Raises:
        UserError: If there are fewer than two.
    """
    names = [name for name in pc.unique(table[label].combine_chunks()).to_pylist() if name is not None]
    if len(names) < 2:
        raise UserError(
            f"data.{key}: the column {label!r} holds {len(names)} different label{'s' * (len(names) != 1)}"
            f"{': ' * bool(names)}{', '.join(names)}; give texts of at least 2 classes"
        )
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def labels_of(table: pa.Table, label: str, names: Sequence[str], key: str) -> Tensor:
    """Labels as numbers of their names, (n,) int64; −1 where there is none.

    Raises:
        UserError: If one is not among the names.
    """
    column = table[label].combine_chunks()
    numbers = pc.index_in(column, pa.array(names, pa.large_string()))
    unknown = pc.and_(pc.is_null(numbers), pc.is_valid(column))
    if pc.any(unknown).as_py():
        strange = pc.filter(column, unknown)[0].as_py()
        raise UserError(f"data.{key}: label {strange!r} is not among those of data.train: {', '.join(names)}")
    return torch.from_numpy(pc.fill_null(numbers, -1).cast(pa.int64()).to_numpy(zero_copy_only=False).copy())
