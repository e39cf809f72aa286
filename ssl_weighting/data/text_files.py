"""Files of rows as text, CSV, TSV and JSON: their encoding, compression, separator and quotation marks found out."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from ssl_weighting.errors import DataWarning, UserError

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("cp932", "gb18030", "big5", "cp949"),
)
"""Those that tables are met in besides Unicode's."""
SAMPLE = 2**18
CHUNK = 2**20
ROWS = 10_000

Choice = Callable[[Sequence[str]], Sequence[int]]
"""Says which columns are wanted, of the names that there are."""


@dataclass(frozen=True)
class TextFile:
    """A file of text, perhaps compressed.

    Attributes:
        path: Where it is.
        key: What it was given as, for messages: option and value.
    """

    path: Path
    key: str

    def open(self) -> TextIO:
        """The text, from its beginning; line ends as they are."""
        return io.TextIOWrapper(self._bytes(), encoding=self.encoding, newline="")

    def _bytes(self) -> Any:
        compression = COMPRESSED.get(self.path.suffix.lower())
        return (
            pa.input_stream(str(self.path), compression=compression) if compression else self.path.open("rb")
        )

    @cached_property
    def encoding(self) -> str:
        """UTF-8, UTF-16 or UTF-32; or another, if it can be told, with a warning.

        Raises:
            UserError: If it cannot.
        """
        with self._bytes() as file:
            head = file.read(4096)
        for mark, name in BOMS:
            if head.startswith(mark):
                return name
        if len(head) > 3 and head.count(0) > 0.3 * len(head):
            return "utf-16-be" if head[0] == 0 else "utf-16-le"
        decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
        with self._bytes() as file:
            while chunk := file.read(CHUNK):
                try:
                    number += decoder.decode(chunk).count("\n")
                except UnicodeDecodeError as error:
                    return self._guessed(number + error.object[: error.start].count(b"\n"))
        return "utf-8-sig"

    def _guessed(self, number: int) -> str:
        from charset_normalizer import from_bytes  # slow to import

        sample = b""
        with self._bytes() as file:
            head = file.read(4096)
        with self._bytes() as file:
            for line in file:
                if not line.isascii() and len(sample) < SAMPLE:
                    sample += line
        found = from_bytes(head + b"\n" + sample, cp_isolation=list(ENCODINGS))
        best = found.best()
        hint = "save it as UTF-8 (spreadsheets call it CSV UTF-8; or iconv -f {} -t utf-8)"
        if best is None or best.coherence == 0:
            raise UserError(f"{self.key}: line {number} is not UTF-8; {hint.format('ITS_ENCODING')}")
        likely = [match for match in found if match.chaos == best.chaos and match.coherence == best.coherence]
        name = best.encoding
        try:
            western = sample.decode("cp1252")
            if any(western == sample.decode(match.encoding) for match in likely):
                name = "cp1252"
        except UnicodeDecodeError:
            pass
        excerpt = " ".join(sample.decode(name, "replace").split())[:60]
        warnings.warn(
            f"{self.key}: is not UTF-8 and is read as {name} (such as: {excerpt}); if these letters are wrong, "
            + hint.format("ITS_ENCODING"),
            DataWarning,
            stacklevel=2,
        )
        return name


class _MisfitError(Exception):
    """A row that does not fit the header, or a quotation mark that does not fit the row. Has the line's number."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True)
class _Rows:
    """Columns of a file that was read to its end.

    Attributes:
        columns: As chosen.
        count: Rows.
        joined: Lines that are not the first of their row.
    """

    columns: list[pa.ChunkedArray]
    count: int
    joined: int


def read_delimited(file: TextFile, separator: str, choose: Choice) -> list[pa.ChunkedArray]:
    """Columns of a CSV or TSV file.

    Quotation marks are read as CSV's, if all of them fit. Where one does not, and every line has as many columns as the
    header without them, they are part of the texts; so they are in a file with tabs where rows would swallow lines.

    Args:
        file: The file.
        separator: What is expected between columns; another one that the header has instead is taken, with a warning.
        choose: The columns that are wanted.

    Returns:
        Large strings, for each column that is wanted.

    Raises:
        UserError: If a line does not fit, naming it.
    """
    with file.open() as text:
        first = text.readline(CHUNK).rstrip("\r\n")
    if not first:
        raise UserError(f"{file.key}: is empty, or its first line is; the first line must name the columns")
    names = _header(first, separator)
    if len(names) == 1:
        other = max(SEPARATORS, key=lambda candidate: len(_header(first, candidate)))
        if len(_header(first, other)) > 1:
            separator, names = other, _header(first, other)
            _say(file, f"its columns are separated by {SEPARATORS[separator]}, and it is read so")
    chosen = choose(names)
    return _best_reading(file, separator, len(names), chosen).columns


def _header(line: str, separator: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [""])]


def _best_reading(file: TextFile, separator: str, width: int, wanted: Sequence[int]) -> _Rows:
    def reading(quoting: Any) -> _Rows:
        return _read(file, separator, width, wanted, quoting)

    try:
        quoted = reading(csv.QUOTE_MINIMAL)
    except _MisfitError as misfit:
        try:
            plain = reading(csv.QUOTE_NONE)
        except _MisfitError:
            raise UserError(f"{file.key}: line {misfit.line}: {misfit}") from None
        _say(
            file,
            f"quotation marks are read as part of the texts: that of line {misfit.line} belongs to no pair",
        )
        return plain
    if not quoted.joined:
        return quoted
    try:
        plain = reading(csv.QUOTE_NONE)
    except _MisfitError:
        return quoted
    if separator == "\t":
        _say(file, f"quotation marks are read as part of the texts, a row on each of its {plain.count} lines")
        return plain
    _say(
        file,
        f"{quoted.count} rows on {plain.count} lines: texts between quotation marks go on over several lines; if that is "
        'wrong, write each quotation mark inside a text as ""',
    )
    return quoted


def _read(file: TextFile, separator: str, width: int, wanted: Sequence[int], quoting: Any) -> _Rows:
    """One reading of the file.

    Raises:
        _MisfitError: If a row has not as many columns as the header, or a quotation mark does not fit.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be of any length
    chunks: list[list[pa.Array]] = [[pa.array([], pa.large_string())] for _ in wanted]
    held: list[list[str]] = [[] for _ in wanted]
    count = blank = 0

    def put_away() -> None:
        for parts, values in zip(chunks, held, strict=True):
            parts.append(pa.array(values, pa.large_string()))
            values.clear()

    with file.open() as text:
        reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
        last = 0
        try:
            for row in reader:
                first, last = last + 1, reader.line_num
                if not row:
                    blank += 1
                    continue
                if len(row) != width:
                    raise _MisfitError(first, _too_many(len(row), width, separator))
                count += 1
                if count == 1:
                    continue  # the header
                for values, place in zip(held, wanted, strict=True):
                    values.append(row[place])
                if count % ROWS == 0:
                    put_away()
        except csv.Error:
            raise _MisfitError(
                last + 1,
                'a quotation mark does not close, or stands inside a text; write each inside a text as ""',
            ) from None
    put_away()
    return _Rows([pa.chunked_array(parts) for parts in chunks], count - 1, last - count - blank)


def _too_many(found: int, width: int, separator: str) -> str:
    return (
        f"has {found} column{'s' * (found != 1)} and the header {width}; put texts that hold {SEPARATORS[separator]} "
        "between quotation marks"
    )


def read_json(file: TextFile, choose: Choice) -> list[pa.ChunkedArray]:
    """Columns of a JSON file: a list of objects, or an object a line.

    Args:
        file: The file.
        choose: The columns that are wanted; the first is one of texts.

    Returns:
        Large strings, for each column that is wanted. Numbers are written as Python writes them.

    Raises:
        UserError: If it is anything else, naming the line.
    """
    objects = list(_objects(file))
    if not objects:
        raise UserError(f"{file.key}: is empty")
    names = list(dict.fromkeys(name for _, found in objects for name in found))
    stripped = [name.strip() for name in names]
    columns: list[pa.ChunkedArray] = []
    for i, place in enumerate(choose(stripped)):
        values = [
            _text_of(found.get(names[place]), stripped[place], where, file, i > 0) for where, found in objects
        ]
        columns.append(pa.chunked_array([pa.array(values, pa.large_string())]))
    return columns


def _objects(file: TextFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object, and where it stands."""
    with file.open() as text:
        content = text.read()
    form = "give a list of objects, or an object a line (pandas: orient='records')"
    if content.lstrip()[:1] == "[":
        try:
            found = [(f"entry {i}", value) for i, value in enumerate(json.loads(content), 1)]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file.key}: is no valid JSON ({error})") from None
    else:
        found = []
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip():
                continue
            try:
                found.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError):
                raise UserError(f"{file.key}: line {number} is no valid JSON; {form}") from None
    for where, value in found:
        if not isinstance(value, dict):
            raise UserError(f"{file.key}: {where} holds a {type(value).__name__}, not an object; {form}")
        if len(found) == 1 and value and all(isinstance(inner, dict | list) for inner in value.values()):
            raise UserError(f"{file.key}: holds one object of columns; {form}")
        yield where, value


def _text_of(value: Any, column: str, where: str, file: TextFile, may_be_number: bool) -> str | None:
    if value is None or isinstance(value, str) or (may_be_number and value != value):
        return None if value != value else value
    if may_be_number and isinstance(value, bool | int | float):
        return str(value)
    wanted = "not one label a row; give a text or a number in each" if may_be_number else "not a text"
    raise UserError(f"{file.key}: {where}: its {column!r} holds {json.dumps(value)[:40]}, {wanted}")


def _say(file: TextFile, what: str) -> None:
    warnings.warn(f"{file.key}: {what}", DataWarning, stacklevel=2)


def look_for_empty(texts: pa.ChunkedArray, what: str) -> None:
    """Say how many texts are empty.

    Raises:
        UserError: If all are.
    """
    empty = pc.sum(pc.equal(pc.utf8_trim_whitespace(texts), "")).as_py() or 0
    if empty and empty == len(texts):
        raise UserError(
            f"{what}: all {len(texts)} texts are empty; name another column with --data.text_column "
            "(init: --text-column)"
        )
    if empty:
        warnings.warn(f"{what}: {empty} of {len(texts)} texts are empty", DataWarning, stacklevel=2)


def replaced(texts: pa.Array, replacements: Sequence[tuple[str, str]]) -> pa.Array:
    """Texts without blanks at their ends, then with regular expressions replaced, in turn, by what stands beside them."""
    texts = pc.utf8_trim_whitespace(texts)
    for pattern, instead in replacements:
        texts = pc.replace_substring_regex(texts, pattern, instead)
    return texts
