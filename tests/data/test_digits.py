import pytest
import torch

from ssl_weighting.data import Digits
from ssl_weighting.errors import UserError


def test_images_are_the_ones_of_scikit_learn_stretched():
    from sklearn.datasets import load_digits

    data = Digits()
    train, test = data.load(True), data.load(False)
    assert train.inputs.shape == (1297, 1, 8, 8)
    assert test.inputs.shape == (500, 1, 8, 8)
    assert train.inputs.dtype == torch.uint8
    assert (train.inputs.max(), train.inputs.min()) == (255, 0)
    images, labels = load_digits(return_X_y=True)
    ours = torch.cat([train.inputs, test.inputs]).flatten(1).double() * 16 / 255
    our_labels = torch.cat([train.labels, test.labels]).tolist()
    rows = {(*image, c) for image, c in zip(ours.round().tolist(), our_labels, strict=True)}
    assert rows == {(*image, c) for image, c in zip(images.tolist(), labels.tolist(), strict=True)}


def test_test_set_is_stratified_and_always_the_same(monkeypatch):
    test = Digits(split_seed=0).load(False)
    assert all(48 <= count <= 51 for count in test.labels.bincount().tolist())
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert Digits(split_seed=9).load(False).checksum() == test.checksum()
    # Another value means that results no longer compare with older ones.
    assert test.checksum().startswith("f6136f134c461817")


def test_sizes_of_the_lists():
    data = Digits(split_seed=0)
    data.setup()
    assert {part: len(s) for part, s in data.sets.items()} == {
        "labeled": 50,
        "validation": 200,
        "unlabeled": 1097,
        "test": 500,
    }


def test_weak_view_does_not_mirror():
    data = Digits()
    bar = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    bar[..., 1] = 255
    seen = data.view(bar, ("weak",))
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    assert (seen[..., 4:] == -1).all()
    assert not torch.equal(seen, data.view(bar, ()))


def test_impossible_test_size_is_refused():
    with pytest.raises(UserError, match=r"data\.num_test=1790: must lie between 10 and 1787"):
        Digits(num_test=1790)
