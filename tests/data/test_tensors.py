"""Tensors and data sets of one's own, trained on from Python with any network."""

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from modules import ssl_module
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.trained import TrainedModel
from ssl_weighting.backbones.module_backbone import ModuleBackbone
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.errors import UserError

CLASSES = 3


def blobs(n, seed=0, known=30):
    """Points of three well separated blobs; only the first ``known`` have a label."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % CLASSES
    centres = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]])
    points = centres[truth] + 0.5 * torch.randn(n, 4, generator=generator)
    return points, torch.where(torch.arange(n) < known, truth, -1), truth


class Items(Dataset):
    """A map-style data set of (input, something)."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return self.points[i], "not looked at"


def frame(columns):
    return pytest.importorskip("pandas").DataFrame(columns)


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


def arguments():
    return {"augmentations": {"weak": noisy}, "split_seed": 0}


def test_unlabelled_examples_are_those_without_a_label():
    points, labels, _ = blobs(90)
    data = TensorData(points, labels, class_names=["a", "b", "c"], **arguments())
    data.setup()
    assert {part: len(s) for part, s in data.sets.items()} == {
        "labeled": 21,
        "validation": 9,
        "unlabeled": 81,
    }
    assert data.class_names == ["a", "b", "c"]
    assert torch.equal(data.sets["unlabeled"].labels < 0, data.split.unlabeled >= 30)


@pytest.mark.parametrize("make", [Items, TensorDataset])
def test_a_dataset_gives_the_same_batches_as_its_tensor(make):
    points, labels, truth = blobs(90)
    one = TensorData(points, labels, test=(points, truth), **arguments())
    two = TensorData(make(points), labels, test=(make(points), truth), **arguments())
    for data in (one, two):
        data.setup()
    assert torch.equal(one.split.labeled, two.split.labeled)
    for part in ("labeled", "unlabeled", "test"):
        first, second = (data.sets[part].__getitems__([3, 0, 7]) for data in (one, two))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert two.load(True).checksum() != TensorData(make(points), truth, **arguments()).load(True).checksum()


def test_images_have_a_weak_view_and_pixels_become_fractions():
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    data = TensorData(images, torch.tensor([0, 0, 0, 1, 1, 1] + 6 * [-1]), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.view(images, ("weak",)).shape == images.shape
    plain = data.view(images, ())
    assert -1 <= plain.min() < plain.max() <= 1
    assert not TensorData(*blobs(90)[:2]).augmentations


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(89), r"data\.inputs: 90 inputs, and labels of shape \(89,\)"),
        (torch.arange(90) % 3 - 2, "labels must be from 0 to 0, or -1"),
        (torch.full((90,), -1), "the labels hold fewer than 2 classes"),
        (torch.arange(90) % 2 * 255, "labels go up to 255, and there are 90; number the classes from 0"),
        (torch.arange(90) / 2, r"the label 0\.5 is no class number"),
        (["a", "b", ""] * 30, "labels are words"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        TensorData(blobs(90)[0], labels)


def test_all_labelled_leaves_no_pool():
    points, _, truth = blobs(90)
    with pytest.raises(UserError, match=r"data\.num_labeled=null: .* leaves no pool"):
        TensorData(points, truth, **arguments()).setup()


def test_training_from_python(tmp_path):
    """The example of docs/own-data.md, on data that three straight lines tell apart."""
    seed_everything(0)
    inputs, labels, _ = blobs(300, known=30)
    test_inputs, _, test_labels = blobs(90, seed=1)
    data = TensorData(inputs, labels, test=(test_inputs, test_labels), augmentations={"weak": noisy})
    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    module = ssl_module(
        num_classes=3,
        backbone=ModuleBackbone(network, head="2"),
        algorithm=UDA(strong=[nn.Dropout(0.2)]),
        weighting_inner_steps=5,
        theta_ema_decay=0.9,
    )
    trainer = Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test/error"] < 0.1
    weights = module.weighting.weights.values
    assert weights.shape == (data.num_unlabeled,)
    assert (weights != 1).any()
    error = float(trainer.callback_metrics["test/error"])
    with pytest.raises(UserError, match=r"TrainedModel\(module, data\)"):
        trainer.predict(module, data)
    found = TrainedModel(module, data, "cpu").probabilities(test_inputs)
    assert (found.argmax(-1) != test_labels.numpy()).mean() == pytest.approx(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_the_datas_fault(value):
    points, labels, _ = blobs(90)
    points[59, 1] = points[70, 0] = value
    with pytest.raises(
        UserError, match=r"data\.inputs: 2 of 90 rows hold NaN or infinity \(the first: row 59\)"
    ):
        TensorData(points, labels, **arguments())
    data = TensorData(Items(points), labels, **arguments())
    data.setup()
    with pytest.raises(UserError, match="data: row 59 and 1 more of its batch holds NaN or infinity"):
        data.sets["unlabeled"].__getitems__(list(range(len(data.sets["unlabeled"]))))


def test_inputs_that_require_a_gradient():
    points, labels, _ = blobs(90)
    with pytest.raises(UserError, match=r"data\.inputs: the inputs require a gradient.*inputs\.detach\(\)"):
        TensorData(points.requires_grad_(), labels)


def test_items_that_make_no_batch():
    class Unequal(Dataset):
        def __len__(self):
            return 90

        def __getitem__(self, row):
            return torch.zeros(4 + row % 2), 0

    data = TensorData(Unequal(), blobs(90)[1], augmentations={"weak": noisy})
    with pytest.raises(UserError, match=r"data\.inputs: items of the data set make no batch .* of one shape"):
        data.load(train=True).fetch(torch.arange(2))


@pytest.mark.parametrize("make", [np.asarray, lambda x: x.double().numpy(), frame, lambda x: x.tolist()])
def test_arrays_tables_and_lists_are_as_tensors(make):
    points, labels, _ = blobs(90)
    data = TensorData(make(points), labels, test=(make(points[:5]), labels[:5]), **arguments())
    data.setup()
    data.setup("test")
    assert torch.equal(data.prepare(data.sets["test"].source.fetch(torch.arange(5))), points[:5])
    points[3, 0] = torch.nan
    with pytest.raises(UserError, match=r"1 of 90 rows hold NaN or infinity \(the first: row 3\)"):
        TensorData(make(points), labels, **arguments())


def test_inputs_that_are_no_numbers():
    points, labels, _ = blobs(90)
    words = frame({"a": ["x"] * 90})
    for inputs, message in (
        (points.to_sparse(), r"give inputs\.to_dense"),
        (words, r"data\.inputs: the inputs are no table of numbers"),
        ([[1.0]] * 89 + [[1.0, 2.0]], r"as many in each row"),
    ):
        with pytest.raises(UserError, match=message):
            TensorData(inputs, labels, **arguments())


def test_test_inputs_of_another_shape():
    points, labels, truth = blobs(90)
    with pytest.raises(
        UserError, match=r"data\.test: its inputs have the shape \(3,\), and those of training \(4,\)"
    ):
        TensorData(points, labels, test=(points[:, :3], truth), **arguments())


def test_class_names_are_one_each():
    points, labels, _ = blobs(90)
    with pytest.raises(UserError, match="a name stands there twice"):
        TensorData(points, labels, class_names=["a", "b", "a"], **arguments())


def test_a_view_that_is_not_known_says_how_to_give_one():
    images = torch.zeros(60, 16, 16, 3, dtype=torch.uint8)
    data = TensorData(images, torch.where(torch.arange(60) < 30, torch.arange(60) % 2, -1), num_validation=4)
    with pytest.raises(UserError, match=r"augmentations=\{'weak': f\}.*\(n, 3, height, width\)"):
        data.view(images[:2], ("weak",))
