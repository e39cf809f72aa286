"""The same example in several parts: found by content in files, texts and tensors, and said."""

import shutil
import warnings

import pyarrow as pa
import torch

from ssl_weighting.data.duplicates import find_copies, of_files, of_tensor, of_texts, without_copies
from ssl_weighting.data.images import Images
from ssl_weighting.data.source import InMemory
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.data.text import Text
from ssl_weighting.errors import DataWarning


def said_by(make, **arguments):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = make(**arguments)
        data.setup("fit")
    return data, [str(w.message) for w in said if w.category is DataWarning and "copies" not in w.filename]


# ---- what is found ----

TEXTS = ["x", "y", "x", "z", "y", "x", "w", "z"]
LABELS = torch.tensor([0, 1, 0, 1, 0, -1, -1, -1])


def test_what_is_equal_and_what_becomes_of_it():
    train = of_texts(pa.array(TEXTS), LABELS)
    test = of_texts(pa.array(["w", "x", "new", "z"]), torch.tensor([0, 1, 0, -1]))
    copies = find_copies(train, test, [0, 1])
    assert copies.repeated == [(2, 0)]
    assert copies.contradictory == [(4, 1)]
    assert [row for row, _ in copies.pool] == [5, 6, 7]
    assert copies.tested == [(1, 0)]
    assert without_copies(LABELS, copies, train).tolist() == [0, 1, -2, 1, 0, -2, -2, -2]
    alone = find_copies(train, None, [0, 1])
    assert [row for row, _ in alone.pool] == [5, 7]
    assert find_copies(train, None, [1]).repeated == []  # labels of other classes are the pool's


def test_rows_of_few_numbers_are_equal_by_chance():
    numbers = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0, -1])
    train = of_tensor(numbers, labels)
    copies = find_copies(train, None, [0, 1])
    assert copies.repeated == [(2, 0)] and [row for row, _ in copies.pool] == [3]
    assert torch.equal(without_copies(labels, copies, train), labels)
    pictures = of_tensor(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels)
    assert without_copies(labels, find_copies(pictures, None, [0, 1]), pictures).tolist() == [0, 1, -2, -2]


def test_few_files_are_read_as_a_whole(tmp_path, monkeypatch):
    from ssl_weighting.data import duplicates

    contents = [
        b"a" * 9000,
        b"b" + b"a" * 8999,
        b"c" * 9000,
        b"a" * 9000,
        b"a" * 50,
        b"d" * 9000,
        b"d" * 9000,
    ]
    paths = [str(tmp_path / str(i)) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        with open(path, "wb") as file:
            file.write(content)
    read, original = [], duplicates._sha256
    monkeypatch.setattr(duplicates, "_sha256", lambda path: read.append(path) or original(path))
    train = of_files(paths, paths, torch.tensor([0, 1, 1, -1, 0, -1, -1]))
    assert [row for row, _ in find_copies(train, None, [0, 1]).pool] == [3]
    assert read == [paths[0], paths[1], paths[3]]


# ---- what is said ----


def images(folders, **changes):
    given = {"labeled": folders / "labelled", "unlabeled": folders / "pool", "size": 16, "split_seed": 0}
    return said_by(Images, **(given | changes))


def test_copies_of_files(folders):
    shutil.copy(folders / "labelled" / "a" / "0.png", folders / "labelled" / "a" / "9.png")
    shutil.copy(folders / "labelled" / "a" / "1.png", folders / "labelled" / "b" / "9.png")
    for i in range(3):
        shutil.copy(folders / "labelled" / "b" / f"{i}.png", folders / "pool" / f"copy{i}.png")
    data, said = images(folders)
    assert said == [
        "data: 1 of the images is labelled twice or more, with the same label (first: a/9.png, a copy of a/0.png): each "
        "counts once",
        "data: 1 of the images is labelled in two ways (first: b/9.png, a copy of a/1.png): both labels are used; keep "
        "the right one",
        "data: 3 images are in the pool and labelled or test images as well (first: unlabeled/copy0.png, a copy of "
        "b/0.png): they are left out of the pool",
    ]
    assert sum(len(data.sets[part]) for part in ("validation", "unlabeled")) == 13 + 8
    everything = {
        *data.split.labeled.tolist(),
        *data.split.validation.tolist(),
        *data.split.unlabeled.tolist(),
    }
    assert "a/9.png" not in {data.sets["labeled"].source.files[row].name for row in everything}


def test_a_test_set_that_is_the_training_set(folders):
    _, said = images(folders, test=folders / "labelled")
    assert said == [
        "data: 12 of 12 test images have a label in training as well (first: a/0.png, a copy of a/0.png): the test error "
        "will be too kind; take others"
    ]


def test_a_table_that_names_files_twice(folders):
    rows = [f"labelled/{name}/{i}.png,{name}" for name in "ab" for i in range(6)]
    pool = [f"pool/{i}.png," for i in range(8)]
    again = [row.split(",")[0] + "," for row in rows]
    (folders / "t.csv").write_text("\n".join(["path,label", *rows, *rows, *pool, *again]))
    data, said = images(folders, labeled=folders / "t.csv", unlabeled=None)
    assert {part: len(data.sets[part]) for part in ("labeled", "validation", "unlabeled")} == {
        "labeled": 6,
        "validation": 6,
        "unlabeled": 14,
    }
    assert ["12 images are labelled twice" in line for line in said] == [True, False]
    assert ["12 images are in the pool and labelled" in line for line in said] == [False, True]


def test_copies_of_texts(tmp_path, tiny_bert):
    rows = [f"a film of number {i},{'good' if i % 2 else 'bad'}" for i in range(12)]
    pool = [f"a plot of number {i}," for i in range(9)]
    more = ["a film of number 3,good", "a film of number 4,", "a film of number 5,"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows, *pool, *more]))
    (tmp_path / "test.csv").write_text(
        "text,label\na film of number 0,bad\nanother,good\na plot of number 2,bad\n"
    )
    data, said = said_by(
        Text,
        train=str(tmp_path / "train.csv"),
        test=str(tmp_path / "test.csv"),
        tokenizer=str(tiny_bert),
        cache=tmp_path / "cache",
        split_seed=0,
    )
    assert len(said) == 3
    assert "1 of the texts is labelled twice or more" in said[0]
    assert "(first: row 22, 'a film of number 3', a copy of row 4, 'a film of number 3')" in said[0]
    assert "3 texts are in the pool and labelled or test texts as well" in said[1]
    assert "1 of 3 test texts have a label in training as well (first: row 1, 'a film of number 0'" in said[2]
    assert len(data.sets["validation"]) + len(data.sets["unlabeled"]) == 12 + 8


def test_copies_of_rows_of_a_tensor():
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    inputs[1] = inputs[0]
    inputs[30] = inputs[2]
    labels = torch.where(torch.arange(40) < 20, torch.arange(40) // 10, -1)
    data, said = said_by(TensorData, inputs=inputs, labels=labels, test=(inputs[3:5], labels[3:5]))
    assert len(said) == 3
    assert (
        "1 of the rows is labelled twice or more, with the same label (first: row 1, a copy of row 0)"
        in said[0]
    )
    assert (
        "1 of the rows is in the pool and labelled or test rows as well (first: row 30, a copy of row 2)"
        in said[1]
    )
    assert "2 of 2 test rows have a label in training as well" in said[2]
    assert len(data.sets["validation"]) + len(data.sets["unlabeled"]) == 40


def test_a_data_set_whose_split_is_fixed_is_not_searched(monkeypatch):
    from ssl_weighting.data.digits import Digits

    data = Digits()
    assert data.contents(InMemory(torch.zeros(2, 1), torch.zeros(2))) is None
