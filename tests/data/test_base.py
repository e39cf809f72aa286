from itertools import islice

import pytest
import torch
from torch import nn

from ssl_weighting.data import InMemory, SSLData, Stream, write_split
from ssl_weighting.errors import UserError


class Toy(SSLData):
    """40 training and 20 test examples of 5 classes; the pixel of example i is i."""

    name = "toy"
    all_class_names = ("ant", "bee", "cow", "dog", "eel")
    augmentations = {"double": lambda x: 2 * x, "add": lambda x: x + 1}  # noqa: RUF012
    mean = (1.0, 2.0)
    std = (2.0, 4.0)
    shift = 0

    def load(self, train):
        n = 200 if train else 50
        pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 2, 3, 3) + self.shift
        return InMemory(pixels, torch.arange(n) % 5)


def toy(**arguments):
    return Toy(**({"num_labeled": 10, "num_validation": 20} | arguments))


# ---- streams ----


def test_batch_is_a_pure_function_of_its_number():
    there = [Stream(23, 7, 0, "u").batch(n).tolist() for n in range(12)]
    stream = Stream(23, 7, 0, "u")
    assert [stream.batch(n).tolist() for n in reversed(range(12))] == there[::-1]
    assert list(islice(iter(stream), 12)) == there


@pytest.mark.parametrize(("size", "batch"), [(23, 7), (8, 4), (3, 10)])
def test_every_example_comes_once_an_epoch_also_across_batches(size, batch):
    drawn = torch.cat([Stream(size, batch, 1, "u").batch(n) for n in range(12)]).tolist()
    epochs = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_start_is_a_resume():
    whole = list(Stream(23, 7, 0, "u", stop=20))
    assert list(Stream(23, 7, 0, "u", start=9, stop=20)) == whole[9:]
    assert len(Stream(23, 7, 0, "u", start=9, stop=20)) == 20  # the trainer counts those before as well


def test_ranks_partition_the_batch_of_one_process():
    one = Stream(23, 8, 0, "u")
    ranks = [Stream(23, 4, 0, "u", rank=r, world_size=2) for r in range(2)]
    for n in range(10):
        assert torch.cat([rank.batch(n) for rank in ranks]).tolist() == one.batch(n).tolist()


def test_seeds_and_names_differ():
    orders = {
        tuple(Stream(50, 50, seed, name).batch(0).tolist()) for seed in (0, 1) for name in ("u", "l", "v")
    }
    assert len(orders) == 6


def test_endless_stream_has_no_length():
    with pytest.raises(TypeError, match="endless"):
        len(Stream(3, 1, 0, "u"))


# ---- views ----


def test_view_scales_augments_in_order_and_normalises():
    raw = torch.full((4, 2, 3, 3), 255, dtype=torch.uint8)
    seen = toy().view(raw, ("double", "add", lambda x: x * 10))
    assert seen.dtype == torch.float32
    # (2 * 1 + 1) * 10 = 30, then (30 - mean) / std a channel
    assert seen[:, 0].unique().tolist() == [14.5]
    assert seen[:, 1].unique().tolist() == [7.0]
    assert toy().view(raw, ("add", "double"))[0, 0, 0, 0] == 1.5


def test_view_without_steps_is_the_normalised_input():
    raw = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    assert toy().view(raw, ()).flatten().tolist() == [-0.5, -0.5, 0.0, -0.25]


def test_module_is_a_step():
    raw = torch.rand(2, 2, 4, 4)
    assert torch.equal(toy().view(raw, (nn.Identity(),)), toy().view(raw, ()))


def test_unknown_step_is_refused():
    with pytest.raises(
        UserError, match=r"view 'strong', which toy does not have; it has \['add', 'double'\]"
    ):
        toy().view(torch.rand(1, 2, 3, 3), ("add", "strong"))


def test_inputs_that_are_no_images_pass_unchanged():
    data = toy()
    data.mean = ()
    tokens = {"ids": torch.arange(3)}
    assert data.view(tokens, ()) is tokens
    points = torch.randn(5, 2)
    assert torch.equal(data.view(points, ()), points)


# ---- the data module ----


def test_index_is_the_row_in_the_unlabelled_list():
    data = toy(unlabeled_batch_size=16)
    data.setup("fit")
    batches = list(data._loader("unlabeled", Stream(180, 16, 0, "u", start=3, stop=6)))
    assert len(batches) == 3
    for number, batch in enumerate(batches, start=3):
        assert batch.row.tolist() == Stream(180, 16, 0, "u").batch(number).tolist()
        rows = data.split.unlabeled[batch.row]
        assert batch.inputs[:, 0, 0, 0].tolist() == rows.tolist()
        assert not hasattr(batch, "labels"), "what the pool's examples are is not for the network to know"
    assert data.num_unlabeled == 180


def test_workers_give_the_same_batches():
    results = []
    for workers in (0, 2):
        data = toy(num_workers=workers)
        data.setup("fit")
        results.append(list(data._loader("unlabeled", Stream(180, 50, 0, "u", stop=4))))
    for one, two in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_labels_count_known_classes_first():
    data = toy(known_classes=[3, 1], pool_classes=[4])
    data.setup()
    assert (data.num_classes, data.class_names) == (2, ["dog", "bee", "eel"])
    original = data.split.unlabeled % 5
    assert set(data.sets["labeled"].labels.tolist()) == {0, 1}
    new = {3: 0, 1: 1, 4: 2}
    assert data.sets["unlabeled"].labels.tolist() == [new[c] for c in original.tolist()]


def test_only_known_classes_are_tested():
    data = toy(known_classes=[3, 1], pool_classes=[4])
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [b for batch in batches for b in batch.labels.tolist()] == [1, 0] * 10
    assert {int(p) % 5 for batch in batches for p in batch.inputs[:, 0, 0, 0]} == {1, 3}


def test_test_set_is_loaded_only_when_asked_for():
    data = toy()
    data.setup("fit")
    assert "test" not in data.sets
    assert len(data.val_dataloader()) == 1
    followed = toy(evaluate_test=True)
    followed.setup("fit")
    assert [len(loader.dataset) for loader in followed.val_dataloader()] == [20, 50]


def test_evaluation_goes_through_a_list_once_and_in_order():
    data = toy(evaluation_batch_size=50)
    data.setup("validate")
    batches = list(data.in_order("unlabeled"))
    assert [len(batch.row) for batch in batches] == [50, 50, 50, 30]
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(180))


def test_split_seed_defaults_to_the_run_seed(monkeypatch):
    def validation(data):
        data.setup("fit")
        return data.split.validation.tolist()

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert validation(toy()) == validation(toy(split_seed=7))
    assert validation(toy()) != validation(toy(split_seed=8))


def test_split_file_is_used_as_it_is(tmp_path):
    first = toy(split_seed=1)
    first.setup("fit")
    write_split(first.split, tmp_path / "split.json")
    again = toy(split_seed=2, split=tmp_path / "split.json")
    again.setup("fit")
    assert again.split.sha256() == first.split.sha256()
    changed = toy(split=tmp_path / "split.json")
    changed.shift = 1
    with pytest.raises(UserError, match="the examples have changed"):
        changed.setup("fit")


@pytest.mark.parametrize(
    ("drawn", "used"),
    [
        ({}, {"known_classes": [0, 1]}),
        ({"known_classes": [0, 1]}, {}),
        ({"known_classes": [0, 1], "pool_classes": [2]}, {"known_classes": [0, 1]}),
    ],
)
def test_split_file_of_other_classes_is_refused(tmp_path, drawn, used):
    first = toy(**drawn)
    first.setup("fit")
    write_split(first.split, tmp_path / "split.json")
    with pytest.raises(UserError, match=r"not drawn for data.known_classes"):
        toy(split=tmp_path / "split.json", **used).setup("fit")


def test_foreign_fraction_reaches_the_split():
    data = toy(known_classes=[0, 1], pool_classes=[2, 3], foreign_fraction=0.4)
    data.setup("fit")
    assert data.sets["unlabeled"].labels.bincount().tolist() == [30, 30, 20, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labeled": 0}, "data.num_labeled=0: must be at least 1"),
        ({"unlabeled_batch_size": -1}, "data.unlabeled_batch_size=-1"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"known_classes": [0, 5]}, r"data.known_classes=\[0, 5\]: .* 0 to 4"),
        ({"known_classes": [1, 1]}, "data.known_classes="),
        ({"known_classes": [1]}, "at least 2"),
        ({"known_classes": [0, 1], "pool_classes": [1]}, r"data.pool_classes=\[1\]: .*known_classes already"),
        ({"foreign_fraction": 0.5}, "data.foreign_fraction=0.5: needs data.pool_classes"),
        ({"known_classes": [0, 1], "pool_classes": [2], "foreign_fraction": 1.0}, "below 1"),
        ({"known_classes": [0, 1], "pool_classes": [2], "foreign_fraction": float("nan")}, "below 1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        toy(**arguments)
    assert "\n" not in str(error.value)


def test_checksum_tells_inputs_labels_and_shapes_apart():
    inputs, labels = torch.arange(12, dtype=torch.uint8).view(3, 4), torch.tensor([0, 1, 2])
    checksums = {
        InMemory(inputs, labels).checksum(),
        InMemory(inputs + 1, labels).checksum(),
        InMemory(inputs, labels + 1).checksum(),
        InMemory(inputs.view(3, 2, 2), labels).checksum(),
        InMemory(inputs.view(torch.int8), labels).checksum(),
    }
    assert len(checksums) == 5
    assert InMemory(inputs.clone(), labels.clone()).checksum() in checksums
