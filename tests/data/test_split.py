import json
import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssl_weighting.data import make_split, read_split, write_split
from ssl_weighting.data.split import validation_shares
from ssl_weighting.errors import UserError

NAMES = ["ant", "bee", "cow", "dog"]


def split_of(labels, **changes):
    arguments = {
        "data_set": "toy",
        "checksum": "c" * 64,
        "class_names": NAMES,
        "known_classes": [0, 1, 2, 3],
        "pool_classes": [],
        "num_labeled": 8,
        "num_validation": 12,
        "seed": 0,
    } | changes
    return make_split(labels, **arguments)


def balanced(per_class=50):
    return torch.arange(4).repeat(per_class)


def lists(split):
    return [split.labeled.tolist(), split.validation.tolist(), split.unlabeled.tolist()]


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_same_seed_same_split_other_seed_other_split():
    assert lists(split_of(balanced())) == lists(split_of(balanced()))
    first, second = split_of(balanced(), seed=0), split_of(balanced(), seed=1)
    assert first.labeled.tolist() != second.labeled.tolist()
    assert first.validation.tolist() != second.validation.tolist()
    assert first.sha256() != second.sha256()


def test_split_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    split_of(balanced())
    assert torch.rand(1) == expected


def test_unlabelled_list_is_all_but_validation_and_holds_the_labelled_examples():
    split = split_of(balanced())
    labelled, validation, unlabelled = map(set, lists(split))
    assert labelled <= unlabelled
    assert not validation & unlabelled
    assert validation | unlabelled == set(range(200))
    assert [sorted(rows) for rows in lists(split)] == lists(split)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=120), st.integers(0, 2**31), st.data())
def test_sizes_are_exact_and_shares_follow_the_classes(labels, seed, data):
    labels = torch.tensor([*labels, *[0, 1, 2, 3] * 10])
    n = len(labels)
    num_labeled = data.draw(st.integers(16, n - 1))
    num_validation = data.draw(st.integers(1, n - num_labeled))
    split = split_of(labels, num_labeled=num_labeled, num_validation=num_validation, seed=seed)
    assert len(split.labeled) == num_labeled
    assert len(set(split.validation.tolist())) == num_validation
    assert not set(split.labeled.tolist()) & set(split.validation.tolist())
    counts = labels.bincount(minlength=4)
    share = labels[split.labeled].bincount(minlength=4)
    assert ((share - counts * num_labeled / n).abs() < 1).all()


def test_equal_classes_get_equal_shares():
    split = split_of(balanced(), num_labeled=40, num_validation=20)
    labels = balanced()
    assert labels[split.labeled].bincount().tolist() == [10] * 4
    assert labels[split.validation].bincount().tolist() == [5] * 4


def test_every_example_of_the_known_classes_can_be_used():
    split = split_of(balanced(), num_labeled=8, num_validation=192)
    assert split.unlabeled.tolist() == split.labeled.tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_labeled": 201}, ["data.num_labeled=201", "200"]),
        (
            {"num_labeled": 100, "num_validation": 101},
            ["data.num_labeled=100", "data.num_validation=101", "200"],
        ),
        ({"num_labeled": 3}, ["data.num_labeled=3", "no label", "at least 4"]),
    ],
)
def test_impossible_sizes_are_refused(changes, words):
    with pytest.raises(UserError) as error:
        split_of(balanced(), **changes)
    assert all(word in one_line(error) for word in words)


def test_class_without_an_example_is_refused():
    labels = balanced()
    with pytest.raises(UserError, match=r"data.known_classes: class 'dog' has no labelled example in toy"):
        split_of(labels[labels != 3])


def test_a_rare_class_has_one_label_whatever_its_share():
    labels = torch.cat([balanced()[balanced() != 3], torch.tensor([3])])
    split = split_of(labels, num_labeled=4)
    assert labels[split.labeled].tolist().count(3) == 1
    assert len(split.labeled) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "^toy has 4 labelled examples of 4 classes, one each; give class 'ant' at least 2"),
        ({"num_validation": 1}, r"^data\.num_validation=1: leaves less than one a class to train on"),
        ({"num_labeled": 4}, r"^data\.num_labeled=4: leaves none to validate"),
        (
            {"num_labeled": 4, "num_validation": 1},
            r"^data\.num_labeled=4 and data\.num_validation=1: together",
        ),
    ],
)
def test_only_numbers_that_were_given_are_named(given, message):
    labels = torch.tensor([0, 1, 2, 3, -1, -1])
    with pytest.raises(UserError, match=message) as error:
        split_of(labels, **({"num_labeled": None, "num_validation": None} | given))
    assert "None" not in one_line(error)


def test_dirty_pool_adds_foreign_examples_to_the_unlabelled_list_only():
    labels = balanced()
    split = split_of(labels, known_classes=[2, 0], pool_classes=[3])
    assert set(labels[split.labeled].tolist()) == {0, 2}
    assert set(labels[split.validation].tolist()) == {0, 2}
    assert labels[split.unlabeled].bincount(minlength=4).tolist() == [44, 0, 44, 50]


def test_examples_without_a_label_belong_to_the_pool():
    labels = torch.cat([balanced(), torch.full((30,), -1)])
    split = split_of(labels)
    assert set(range(200, 230)) <= set(split.unlabeled.tolist())
    assert max(split.labeled.max(), split.validation.max()) < 200


@pytest.mark.parametrize(("fraction", "foreign"), [(0.0, 0), (0.25, 29), (0.5, 88)])
def test_foreign_fraction_is_the_share_of_the_final_list(fraction, foreign):
    labels = balanced()
    split = split_of(labels, known_classes=[0, 1], pool_classes=[2, 3], foreign_fraction=fraction)
    counts = labels[split.unlabeled].bincount(minlength=4)
    assert counts[:2].sum() == 88
    assert counts[2:].sum() == foreign
    assert abs(counts[2] - counts[3]) <= 1
    assert abs(foreign / (88 + foreign) - fraction) < 0.5 / 88


def test_foreign_examples_are_drawn_with_the_seed_and_leave_the_other_lists_alone():
    dirty = {"known_classes": [0, 1], "pool_classes": [2, 3]}
    first = split_of(balanced(), **dirty, foreign_fraction=0.25)
    assert lists(first) == lists(split_of(balanced(), **dirty, foreign_fraction=0.25))
    other = split_of(balanced(), **dirty, foreign_fraction=0.25, seed=1)
    foreign = [set(s.unlabeled[balanced()[s.unlabeled] > 1].tolist()) for s in (first, other)]
    assert foreign[0] != foreign[1]
    assert lists(first)[:2] == lists(split_of(balanced(), **dirty))[:2]


def test_foreign_fraction_out_of_reach_names_the_largest():
    dirty = {"known_classes": [0, 1, 2], "pool_classes": [3]}
    with pytest.raises(UserError, match=r"data.foreign_fraction=0.5: .* at most 0.265 can") as error:
        split_of(balanced(), **dirty, foreign_fraction=0.5)  # 50 of 138 + 50
    one_line(error)
    assert len(split_of(balanced(), **dirty, foreign_fraction=0.265).unlabeled) == 188


def test_round_trip_through_a_file(tmp_path):
    split = split_of(balanced(), seed=5)
    path = tmp_path / "split.json"
    write_split(split, path)
    back = read_split(path, "toy", "c" * 64)
    assert lists(back) == lists(split)
    assert (back.seed, back.sha256()) == (5, split.sha256())
    assert back.labeled.dtype == torch.int64
    assert os.listdir(tmp_path) == ["split.json"]


def damaged(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_text(p.read_text()[:-40]), "not a split file"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not a split file"),
        (lambda p: p.write_text("[1, 2]"), "not a split file"),
        (lambda p: p.write_text("{}"), "not a split file"),
        (lambda p: damaged(p, labeled=[[1], [2, 3]]), "not a split file"),
        (lambda p: damaged(p, labeled=[2**80]), "not a split file"),
        (lambda p: damaged(p, labeled=[{}]), "not a split file"),
        (lambda p: damaged(p, labeled=[0, 1, 2]), "was changed"),
        (lambda p: damaged(p, checksum="d" * 64), "was changed"),
        (lambda p: damaged(p, version=99), "format 99"),
    ],
)
def test_damaged_or_changed_file_is_refused(tmp_path, damage, words):
    path = tmp_path / "split.json"
    write_split(split_of(balanced()), path)
    damage(path)
    with pytest.raises(UserError) as error:
        read_split(path, "toy", "c" * 64)
    assert one_line(error).startswith(f"data.split={path}: ")
    assert words in one_line(error)


@pytest.mark.parametrize(
    ("name", "checksum", "said"),
    [
        ("other", "c" * 64, "made for toy, but the data is other"),
        ("toy", "d" * 64, "examples have changed since"),
    ],
)
def test_file_of_other_data_is_refused(tmp_path, name, checksum, said):
    path = tmp_path / "split.json"
    write_split(split_of(balanced()), path)
    with pytest.raises(UserError, match=said) as error:
        read_split(path, name, checksum)
    assert one_line(error).endswith("draw a new split with --data.split null")


# ---- all labels that there are ----


def labels_of_sizes(*sizes, pool=10):
    return torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)] + [torch.full((pool,), -1)])


def test_all_labels_are_used_and_a_share_of_every_class_validates():
    labels = labels_of_sizes(100, 12, 5, 1)
    split = split_of(labels, num_labeled=None, num_validation=None)
    assert labels[split.validation].bincount(minlength=4).tolist() == [30, 4, 2, 0]
    assert labels[split.labeled].bincount(minlength=4).tolist() == [70, 8, 3, 1]
    assert len(split.unlabeled) == 82 + 10


def test_large_validation_shares_are_capped_at_the_papers_number():
    counts = torch.tensor([20_000, 400, 8])
    shares = validation_shares(counts)
    assert shares.sum() <= 1024
    assert shares[0] > 900
    assert shares.min() >= 1


@given(
    st.lists(st.integers(1, 40), min_size=4, max_size=4),
    st.one_of(st.none(), st.integers(4, 30)),
    st.one_of(st.none(), st.integers(1, 30)),
)
@settings(deadline=None, max_examples=60)
def test_left_out_numbers_fill_up_with_what_there_is(sizes, num_labeled, num_validation):
    labels = labels_of_sizes(*sizes)
    try:
        split = split_of(labels, num_labeled=num_labeled, num_validation=num_validation)
    except UserError:
        least = 4 if num_labeled is None else num_labeled
        too_few = sum(sizes) < least + (num_validation or 1)
        assert too_few
        return
    labeled, validation = set(split.labeled.tolist()), set(split.validation.tolist())
    assert not labeled & validation
    assert labels[split.labeled].unique().tolist() == [0, 1, 2, 3]
    assert len(labeled) == num_labeled or (num_labeled is None and len(labeled | validation) == sum(sizes))
    assert len(validation) == num_validation or (num_validation is None and validation)
    assert not validation & set(split.unlabeled.tolist())


def test_no_pool_is_said():
    with pytest.raises(UserError, match=r"data\.num_labeled=null: every example of toy has a label"):
        split_of(labels_of_sizes(9, 9, 9, 9, pool=0), num_labeled=None)


@settings(max_examples=60, deadline=None)
@given(st.integers(9, 100), st.sampled_from([None, 0.0, 0.25, 0.5]), st.booleans(), st.integers(0, 2**31))
def test_fewer_unlabelled_examples(count, fraction, dirty, seed):
    """As many as asked for, the labelled ones among them, the foreign share as asked or as it was."""
    labels = balanced()  # 50 each
    classes = {"known_classes": [0, 1], "pool_classes": [2, 3] if dirty else []}
    fraction = fraction if dirty else None
    arguments = {
        **classes,
        "num_labeled": 4,
        "num_validation": 10,
        "seed": seed,
        "foreign_fraction": fraction,
    }
    whole = split_of(labels, **arguments)
    own = count - round(count * (len(whole.unlabeled) - 90) / len(whole.unlabeled)) if dirty else count
    assume(own <= 90)
    split = split_of(labels, **arguments, num_unlabeled=count)
    assert len(split.unlabeled) == count
    assert set(split.labeled.tolist()) <= set(split.unlabeled.tolist())
    assert not set(split.validation.tolist()) & set(split.unlabeled.tolist())
    assert lists(split)[:2] == lists(whole)[:2]
    foreign = int((labels[split.unlabeled] >= 2).sum())
    assert abs(foreign - (count - own)) <= 1
    assert lists(split_of(labels, **arguments, num_unlabeled=count)) == lists(split)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_unlabeled": 8}, "data.num_unlabeled=8: must be above the 8 labelled"),
        ({"num_unlabeled": 181}, "data.num_unlabeled=181: .* at most the 180"),
        (
            {"num_unlabeled": 90, "known_classes": [0], "pool_classes": [1, 2, 3], "foreign_fraction": 0.1},
            "data.num_unlabeled: 81 of them .* change it, or data.foreign_fraction",
        ),
    ],
)
def test_a_pool_that_cannot_be_so_small_or_large_is_refused(changes, words):
    with pytest.raises(UserError, match=words) as error:
        split_of(balanced(), **({"num_labeled": 8, "num_validation": 20} | changes))
    one_line(error)
