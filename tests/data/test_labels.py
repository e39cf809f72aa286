"""What a label means, whatever it was written in."""

import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch

from ssl_weighting.data.labels import as_names, class_numbers, label_names, numbers_of, without_pool_marks
from ssl_weighting.errors import DataWarning, UserError

FORMS = {
    "integers": [1, 0, None, 1],
    "halves of pandas": [1.0, 0.0, float("nan"), 1.0],
    "texts": ["1", "0", "", "1"],
    "texts of floats": ["1.0", " 0.0", None, "1"],
    "exponents": ["1e+00", "-0.0", "  ", "1.000"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_number_is_its_shortest_form_and_only_empty_is_none(form):
    names = as_names(pa.chunked_array([FORMS[form]]), "labels")
    assert names.to_pylist() == ["1", "0", None, "1"]
    assert numbers_of(names, label_names(names, "labels"), "data.train").tolist() == [1, 0, -1, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["01", "1", "007"], ["01", "1", "007"]),
        (["1e3", "1.5", ".5"], ["1e3", "1.5", ".5"]),
        ([1e17, 0.5, 2.0], ["100000000000000000", "0.5", "2"]),
        (["True", "false"], ["true", "false"]),
        ([True, False], ["true", "false"]),
        ([b"pos", b"neg"], ["pos", "neg"]),
        (["cafe\u0301", "caf\u00e9"], ["caf\u00e9", "caf\u00e9"]),
    ],
)
def test_names_of_classes(values, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        assert as_names(pa.array(values), "labels").to_pylist() == expected


def test_categories_and_small_floats():
    assert as_names(pa.array(["b", "a", None]).dictionary_encode(), "labels").to_pylist() == ["b", "a", None]
    assert as_names(pa.array(np.array([1, 0, np.nan], np.float16)), "labels").to_pylist() == ["1", "0", None]


@pytest.mark.parametrize("values", [[["a"], ["b"]], [{"name": "a"}], pa.array([1], pa.duration("s"))])
def test_no_label(values):
    with pytest.raises(UserError, match=r"labels holds .*, not one label a row"):
        as_names(pa.array(values), "labels")


@pytest.mark.parametrize(
    ("labels", "is_pool", "said"),
    [
        (
            ["0", "1", "-1", "-1"],
            True,
            r"2 rows have the label -1, which is read as none.*2 classes; if -1 is a",
        ),
        (
            ["0", "1", "-1", None],
            False,
            "-1, which is a class like any other, since 1 empty labels are the pool",
        ),
        (["1", "-1"], False, "-1, which is a class like any other, since the only other label is 1"),
        (["-2", "-1", "0", "1"], False, None),
        (["0.5", "1", "-1"], False, "1 row has the label '-1', which is a class"),
        (["pos", "neg", "-1"], False, "1 row has the label '-1', which is a class"),
        (
            ["pos", "NaN", "neg", None],
            False,
            "1 row has the label 'NaN', which is a class like any other; if",
        ),
        (["NULL", "neg", "n/a"], False, "1 row has the label 'NULL'"),
        (["Pos", "pos", "neg"], False, "'Pos' and 'pos' are two classes"),
        (["pos", "neg", None], False, None),
        (["0", "1", None], False, None),
    ],
)
def test_marks_of_the_pool(labels, is_pool, said):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = without_pool_marks(pa.array(labels, pa.large_string()), "labels").to_pylist()
    assert result == [None if is_pool and label == "-1" else label for label in labels]
    if said is None:
        assert not found
    else:
        with pytest.warns(DataWarning, match=said):
            warnings.warn(found[0].message, stacklevel=1)


def test_minus_one_beside_known_classes():
    labels = pa.array(["0", "-1"], pa.large_string())
    with pytest.warns(DataWarning, match="1 row has the label -1, which is no class of the training data"):
        assert without_pool_marks(labels, "labels", ["0", "1"]).to_pylist() == ["0", None]
    assert without_pool_marks(labels, "labels", ["-1", "0", "1"]).to_pylist() == ["0", "-1"]


def test_numbers_rise_and_strangers_are_named():
    names = label_names(pa.array(["10", "-1", "9", None]), "labels")
    assert names == ("-1", "9", "10")
    with pytest.raises(UserError, match=r"data.test: label '8' is not among those of data.train: -1, 9, 10"):
        numbers_of(pa.array(["8"], pa.large_string()), names, "data.test")
    with pytest.raises(UserError, match="1 different label: a; at least 2"):
        label_names(pa.array(["a", None]), "labels")


PYTHON = {
    "tensor": torch.tensor([1.0, 0.0, torch.nan]),
    "half": torch.tensor([1, 0, -1], dtype=torch.float16),
    "int8": torch.tensor([1, 0, -1], dtype=torch.int8),
    "list": [1, 0, None],
    "array": np.array([1, 0, np.nan]),
    "objects": np.array([1, 0, None], dtype=object),
    "int16": np.array([1, 0, -1]).astype(np.int16),
}


@pytest.mark.parametrize("form", PYTHON)
def test_class_numbers_from_python(form):
    result = class_numbers(PYTHON[form], "data.inputs")
    assert result.dtype == torch.int64 and result.tolist() == [1, 0, -1]


@pytest.mark.parametrize("kind", ["float64", "Int64", "object"])
def test_columns_of_pandas(kind):
    column = pytest.importorskip("pandas").Series([1, 0, None], dtype=kind)
    assert class_numbers(column, "data.inputs").tolist() == [1, 0, -1]


def test_truth_values_are_numbers():
    assert class_numbers(np.array([True, False]), "data.inputs").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 0.5, 1.0, -1.0]), r"the label 0\.5 is no class number"),
        (torch.tensor([0.05, 0.95]), "probabilities as labels are not provided for"),
        ([1.0, float("inf")], "the label inf is no class number"),
        (["a", "b"], "labels are words"),
        (np.array(["0", "1"]), "labels are words"),
        ([[0], [1, 2]], "of unequal lengths"),
        (torch.tensor([1j]), "complex"),
    ],
)
def test_what_is_no_class_number(labels, message):
    with pytest.raises(UserError, match=message):
        class_numbers(labels, "data.inputs")
