"""IMDB: UDA's reviews, filter and cleaning, on made-up reviews and on the real ones."""

import hashlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssl_weighting.data import imdb
from ssl_weighting.data.imdb import UDA_LABELED, Imdb, _by_identity, clean
from ssl_weighting.data.source import InMemory
from ssl_weighting.data.split import make_split
from ssl_weighting.errors import UserError


def made(root, tiny_bert, tmp_path, **kwargs):
    kwargs = {"labeled": "random", "num_labeled": 4, "num_validation": 6} | kwargs
    return Imdb(root=root, tokenizer=str(tiny_bert), cache=tmp_path / "cache", split_seed=0, **kwargs)


def test_cleaning():
    raw = ['  a<br /><br />b &quot;c&quot; <p>d <a href="x.htm">e</a> f\\ng  ', "plain"]
    assert clean(pa.array(raw)).to_pylist() == ['a  b "c"  d e f g', "plain"]


def test_short_unsupervised_reviews_are_left_out(tiny_imdb, tiny_bert, tmp_path):
    data = made(tiny_imdb, tiny_bert, tmp_path)
    data.setup("fit")
    assert len(data.load(train=True).labels) == 40 + 20
    assert {part: len(rows) for part, rows in data.sets.items()} == {
        "labeled": 4,
        "validation": 6,
        "unlabeled": 54,
    }
    assert data.sets["validation"].labels.bincount().tolist() == [3, 3]
    assert data.num_classes == 2 and data.class_names == ["negative", "positive"]


def test_folders_and_parquet_are_the_same_data(tiny_imdb, tiny_bert, tmp_path):
    names = {0: "neg", 1: "pos", -1: "unsup"}
    for split in ("train", "test", "unsup"):
        for row in pq.read_table(tiny_imdb / f"{split}.parquet").to_pylist():
            folder = tmp_path / "aclImdb" / ("test" if split == "test" else "train") / names[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row['id']}_7.txt").write_text(row["text"], encoding="utf-8")
    from_parquet, from_folders = (made(root, tiny_bert, tmp_path) for root in (tiny_imdb, tmp_path))
    for train in (True, False):
        assert from_parquet.load(train).checksum() == from_folders.load(train).checksum()


def with_uda_reviews(folder, monkeypatch, ids):
    """Twenty made-up reviews in place of UDA's, behind and among others of the same text or id."""
    table: dict[str, list] = {"text": [], "label": [], "id": []}
    replaced: dict[int, dict[int, str]] = {0: {}, 1: {}}

    def add(text, label, number):
        table["text"].append(text)
        table["label"].append(label)
        table["id"].append(number)

    for label in (0, 1):
        for i in range(30):
            add(f"review {i} of {label}", label, 100_000 + i)
        for number in UDA_LABELED[label]:
            text = f"labelled review {number} of {label} <br />"
            replaced[label][number] = hashlib.sha256(text.encode()).hexdigest()[:16]
            add(text, label, number)
    if not ids:
        del table["id"]
    pq.write_table(pa.table(table), folder / "train.parquet")
    pq.write_table(pa.table({"text": ["x" * 600], "label": [-1]}), folder / "unsup.parquet")
    monkeypatch.setattr(imdb, "UDA_LABELED", replaced)


@pytest.mark.parametrize("ids", [True, False])
def test_udas_reviews_are_found_by_id_or_by_content(tiny_bert, tmp_path, monkeypatch, ids):
    with_uda_reviews(tmp_path, monkeypatch, ids)
    data = made(tmp_path, tiny_bert, tmp_path, labeled="uda", num_labeled=20, num_validation=20)
    data.setup("fit")
    texts = data.load(train=True).describe(data.split.labeled)
    expected = {f"labelled review {n} of {label}" for label in (0, 1) for n in UDA_LABELED[label]}
    assert {text.strip() for text in texts} == expected
    assert data.sets["labeled"].labels.bincount().tolist() == [10, 10]
    assert not {*data.split.validation.tolist()} & {*data.split.labeled.tolist()}


def test_bad_input_is_one_line(tiny_imdb, tiny_bert, tmp_path):
    for kwargs, message in (
        (
            {"labeled": "uda", "num_labeled": 20, "num_validation": 20},
            r"data\.labeled=uda: positive review 9716",
        ),
        ({"labeled": "uda", "num_labeled": 30}, r"data\.num_labeled=30: UDA labels 20"),
        ({"root": tmp_path}, rf"data\.root={tmp_path}: holds neither train\*\.parquet nor aclImdb"),
        ({"max_length": 2}, r"data\.max_length=2"),
        ({"replace": 0.0}, r"data\.replace=0\.0"),
        ({"test_subset": 21}, r"data\.test_subset=21: there are only 20"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            made(kwargs.pop("root", tiny_imdb), tiny_bert, tmp_path, **kwargs).setup()
        assert "\n" not in str(caught.value)
    shutil.copy(tiny_imdb / "train.parquet", tmp_path / "train.parquet")
    (tmp_path / "unsup.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"data\.root=.*cannot be read"):
        made(tmp_path, tiny_bert, tmp_path).setup("fit")


def test_the_test_subset_does_not_depend_on_the_seed(tiny_imdb, tiny_bert, tmp_path):
    rows = []
    for seed in (1, 2):
        data = made(tiny_imdb, tiny_bert, tmp_path, test_subset=7)
        data.split_seed = seed
        data.setup("test")
        rows.append(data.sets["test"].rows)
        assert len(data.sets["test"]) == len(data.sets["test"].labels) == 7
    assert torch.equal(*rows)


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory, tiny_bert):
    root = shared / "data" / "imdb"
    if not (root / "train.parquet").is_file():
        pytest.skip(f"no real IMDB in {root}")
    data = Imdb(root=root, tokenizer=str(tiny_bert), cache=tmp_path_factory.mktemp("cache"), split_seed=3)
    return data, data.read(train=True)


def test_the_real_filter_keeps_what_udas_does(real):
    _, (texts, labels) = real
    assert len(texts) == len(labels) == 69_972
    assert [int((labels == c).sum()) for c in (0, 1, -1)] == [12_500, 12_500, 44_972]


def test_the_real_split(real):
    """69,952 rows of Λ, no overlap with validation, and UDA's very ids."""
    data, (_, labels) = real
    split = make_split(
        labels,
        data_set="imdb",
        checksum="",
        class_names=data.all_class_names,
        known_classes=[0, 1],
        pool_classes=[],
        num_labeled=20,
        num_validation=20,
        seed=3,
        first=data.labeled_first(InMemory(torch.empty(0), labels)),
    )
    assert len(split.unlabeled) == 69_952
    assert not {*split.validation.tolist()} & ({*split.unlabeled.tolist()} | {*split.labeled.tolist()})
    assert labels[split.validation].bincount().tolist() == [10, 10]
    ids = {row: identity for identity, row in data._rows.items()}
    assert {ids[row] for row in split.labeled.tolist()} == {
        (label, number) for label in (0, 1) for number in UDA_LABELED[label]
    }
    # The same reviews by their contents, as in a copy without ids.
    table = data._part("train")
    rows = _by_identity(table.set_column(2, "id", pa.nulls(len(table), pa.int64())))
    texts = table["text"]
    for label, reviews in UDA_LABELED.items():
        for number, start in reviews.items():  # a review that occurs twice is found at its first place
            assert texts[rows[label, start]] == texts[data._rows[label, number]]
