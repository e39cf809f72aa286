"""Tables as people have them: no row is lost, no letter misread in silence."""

import bz2
import gzip
import json
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_weighting.data.tables import read_table, table_ending
from ssl_weighting.errors import DataWarning, UserError

ROWS = [("a lovely film, warm", "pos"), ("dull and slow", "neg"), ("well made", "")]


def content(rows=ROWS, head="text,label", separator=",", end="\n"):
    return end.join([head, *(f'"{text}"{separator}{label}' for text, label in rows)]) + end


def read(path, text="text", label="label"):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        table = read_table(str(path), "train", text, label)
    said = [str(warning.message) for warning in found if issubclass(warning.category, DataWarning)]
    texts, labels = table[text].to_pylist(), table[label].to_pylist()
    return [(a, b or "") for a, b in zip(texts, labels, strict=True)], said


def saved(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bom.csv", content().encode("utf-8-sig")),
        ("utf16.csv", content().encode("utf-16")),
        ("utf16.tsv", content(head="text\tlabel", separator="\t").encode("utf-16-le")),
        ("utf32.csv", content().encode("utf-32")),
        ("cr.csv", content(end="\r")),
        ("crlf.csv", content(end="\r\n")),
        ("blank.csv", content(end="\n\n")),
        ("open.csv", content().rstrip("\n")),
        ("UPPER.CSV", content()),
        ("a.csv.gz", gzip.compress(content().encode(), mtime=0)),
        ("a.Csv.BZ2", bz2.compress(content().encode())),
        ("case.csv", content(head="Text, LABEL ")),
        ("more.csv", content(head="text,label,note", rows=[(t, f"{x},1") for t, x in ROWS])),
        ("array.json", json.dumps([{"text": t, "label": x} for t, x in ROWS])),
        ("lines.json", "\n".join(json.dumps({"text": t, "label": x or None}) for t, x in ROWS)),
        ("absent.jsonl", "\n\n".join(json.dumps({"text": t} | ({"label": x} if x else {})) for t, x in ROWS)),
    ],
)
def test_forms_of_the_same_rows(tmp_path, name, data):
    assert read(saved(tmp_path, name, data)) == (ROWS, [])


def test_a_name_that_matches_wins_over_one_that_differs_by_case(tmp_path):
    path = saved(tmp_path, "a.csv", "Text,text,label\nx,a,pos\ny,b,neg\n")
    assert read(path) == ([("a", "pos"), ("b", "neg")], [])


def test_quotation_marks_in_tabs_are_letters(tmp_path):
    rows = [
        ('"loved" it', "pos"),
        ('"lovely, he said', "pos"),
        ("dull", "neg"),
        ('"ugly, she said', "neg"),
        ('12" of it', ""),
    ]
    found, said = read(saved(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{t}\t{x}\n" for t, x in rows)))
    assert found == rows
    assert len(said) == 1 and "quotation marks are read as part of the texts" in said[0]


def test_two_open_quotation_marks_swallow_no_rows_between_tabs(tmp_path):
    rows = [('"lovely, he said', "pos"), ("dull", "neg"), ('bad, she said"', "neg")]
    found, said = read(saved(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"{t}\t{x}\n" for t, x in rows)))
    assert found == rows and len(said) == 1


def test_texts_over_several_lines(tmp_path):
    rows = [('one\ntwo, "three"', "pos"), ("four\r\nfive", "neg")]
    text = "text,label\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}",{x}\n' for t, x in rows)
    assert read(saved(tmp_path, "a.csv", text)) == (rows, [])


def test_long_texts(tmp_path):
    rows = [*ROWS, ("word " * 300_000, "pos")]
    assert read(saved(tmp_path, "a.csv", content(rows))) == (rows, [])
    lines = "\n".join(json.dumps({"text": t, "label": x or None}) for t, x in rows)
    assert read(saved(tmp_path, "a.jsonl", lines)) == (rows, [])


def test_other_separators_and_encodings_are_said(tmp_path):
    found, said = read(saved(tmp_path, "a.csv", content(head="text;label", separator=";")))
    assert found == ROWS and "separated by semicolons" in said[0]
    rows = [*ROWS, ("café olé, très déjà vu à Orléans", "pos")]
    found, said = read(saved(tmp_path, "b.csv", content(rows).encode("latin-1")))
    assert found == rows
    assert len(said) == 1 and "is not UTF-8 and is read as" in said[0] and "café" in said[0]


def test_categories_and_bytes(tmp_path):
    texts, labels = map(pa.array, zip(*ROWS, strict=True))
    pq.write_table(
        pa.table({"text": texts.dictionary_encode(), "label": labels.dictionary_encode()}),
        tmp_path / "a.parquet",
    )
    pq.write_table(pa.table({"text": texts.cast(pa.binary()), "label": labels}), tmp_path / "b.parquet")
    assert read(tmp_path / "a.parquet") == read(tmp_path / "b.parquet") == (ROWS, [])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "text,label,text\na,b,c\n", "2 of its columns are called 'text'; rename all but one"),
        ("a.csv", "text,label,label\na,b,c\n", "2 of its columns are called 'label'"),
        (
            "a.csv",
            "text,label\na,b,pos\n",
            "line 2: has 3 columns and the header 2; put texts that hold commas",
        ),
        (
            "a.csv",
            'text,label\n"a \\"b\\", c",pos\n',
            'line 2: a quotation mark .*write each inside a text as ""',
        ),
        ("a.csv", "", "is empty"),
        ("a.csv", "words,label\na,pos\n", "has no column 'text' but words, label"),
        (
            "a.jsonl",
            '{"text": "a", "label": ["pos"]}\n',
            r"line 1: its 'label' holds \[\"pos\"\], not one label a row",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": {"n": 1}}\n',
            "line 1: its 'label' holds .*, not one label a row",
        ),
        ("a.jsonl", '{"text": 42, "label": 1}\n', "line 1: its 'text' holds 42, not a text"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2 is no valid JSON"),
        ("a.jsonl", "[1, 2]\n", "entry 1 holds a int, not an object"),
        ("a.json", '{"text": {"0": "a"}, "label": {"0": "b"}}', r"one object of columns; .*orient='records'"),
        ("a.parquet", "PAR", "cannot be read"),
        ("a.csv.gz", "text,label\n", "cannot be read"),
        ("a.xlsx", "PK", r"ends in none of \.csv"),
    ],
)
def test_one_line_for_what_cannot_be_read(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message) as caught:
        read(saved(tmp_path, name, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.csv", ".csv"),
        ("a.b.JSONL.gz", ".jsonl"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("csv", None),
        ("a.gz", None),
    ],
)
def test_endings(tmp_path, name, ending):
    assert table_ending(tmp_path / name) == ending
