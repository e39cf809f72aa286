import pytest
import torch

from ssl_weighting.data import Synthetic, write_split
from ssl_weighting.errors import UserError

SHAPES = ["linear", "circles", "moons"]


def ready(shape="moons", **arguments):
    data = Synthetic(shape, **arguments)
    data.setup()
    return data


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_those_of_the_paper(shape):
    data = ready(shape, split_seed=0)
    assert data.name == data.split.data_set == shape
    assert {part: len(s) for part, s in data.sets.items()} == {
        "labeled": 10,
        "validation": 30,
        "unlabeled": 1000,
        "test": 1000,
    }
    assert data.sets["labeled"].labels.bincount().tolist() == [5, 5]
    points = data.load(True)
    assert points.inputs.dtype == torch.float32
    assert points.inputs.shape == (1030, 2)
    assert points.labels.bincount().tolist() == [515, 515]


def test_pool_has_the_size_asked_for_whatever_validates():
    assert ready(pool_size=77, num_validation=13, split_seed=0).num_unlabeled == 77


@pytest.mark.parametrize("shape", SHAPES)
def test_points_follow_the_split_seed_unless_given_their_own(shape, monkeypatch):
    def points(**arguments):
        return Synthetic(shape, **arguments).load(True).inputs

    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert torch.equal(points(), points(split_seed=3))
    assert not torch.equal(points(), points(split_seed=4))
    assert torch.equal(points(data_seed=1), points(data_seed=1, split_seed=4))
    assert not torch.equal(points(data_seed=1), points(data_seed=2))


def test_points_do_not_depend_on_or_change_the_global_generators():
    torch.manual_seed(0)
    first = Synthetic(split_seed=0).load(True).inputs
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after
    assert torch.equal(first, Synthetic(split_seed=0).load(True).inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_test_points_are_others(shape):
    data = Synthetic(shape, pool_size=970, split_seed=0)
    assert not torch.isin(data.load(False).inputs[:, 0], data.load(True).inputs[:, 0]).any()


def test_labels_are_right_where_the_noise_is_small():
    points = Synthetic("linear", split_seed=0).load(True)
    assert torch.equal(points.inputs.sum(1) > 0, points.labels == 1)
    points = Synthetic("circles", noise=0.05, split_seed=0).load(True)
    assert torch.equal(points.inputs.norm(dim=1) < 0.75, points.labels == 1)
    points = Synthetic("moons", noise=0.0, split_seed=0).load(True)
    radius = (points.inputs[points.labels == 0]).norm(dim=1)
    assert torch.allclose(radius, torch.ones_like(radius), atol=1e-5)


def test_noise_blurs():
    quiet, loud = (Synthetic("circles", noise=s, split_seed=0).load(True) for s in (0.0, 0.3))
    spread = [(p.inputs[p.labels == 0].norm(dim=1)).std() for p in (quiet, loud)]
    assert spread[0] < 1e-5
    assert 0.2 < spread[1] < 0.4


def test_weak_view_is_the_point_itself():
    data = ready(split_seed=0)
    batch = data.sets["unlabeled"].__getitems__([0, 1, 2])
    assert torch.equal(data.view(batch.inputs, ("weak",)), batch.inputs)


def test_split_of_another_run_brings_its_points_along(tmp_path):
    first = ready(split_seed=5)
    write_split(first.split, tmp_path / "split.json")
    again = ready(split_seed=6, split=tmp_path / "split.json")
    assert again.split.sha256() == first.split.sha256()
    with pytest.raises(UserError, match="the examples have changed"):
        ready(data_seed=8, split=tmp_path / "split.json")
    with pytest.raises(UserError, match="no such file"):
        ready(split=tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "spiral"}, "data.shape=spiral: must be linear, circles or moons"),
        ({"noise": -0.1}, "data.noise=-0.1"),
        ({"noise": float("nan")}, "data.noise=nan"),
        ({"pool_size": 5}, "data.pool_size=5: must be at least 10"),
        ({"num_test": 0}, "data.num_test=0"),
        ({"data_seed": -1}, "data.data_seed=-1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Synthetic(**arguments)
