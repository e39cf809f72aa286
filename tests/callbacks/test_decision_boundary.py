"""Frames of runs in the plane."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import make_moons

from ssl_weighting.app.callbacks import DecisionBoundary
from ssl_weighting.app.cli import run_lightning
from ssl_weighting.data import ExampleSet, InMemory

OPTIONS = [
    *("--trainer.max_steps", "120", "--trainer.val_check_interval", "60", "--trainer.accelerator", "cpu"),
    *(
        "--trainer.enable_progress_bar",
        "false",
        "--model.weighting.warmup_steps",
        "0",
        "--seed_everything",
        "3",
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_lightning(
        ["fit", "--config", "moons", "--runs", str(tmp_path_factory.mktemp("runs")), *OPTIONS]
    )


@pytest.fixture(scope="module")
def frames(run):
    with np.load(run / "boundary.npz") as file:
        return dict(file)


def test_frames_are_spread_over_the_run(frames):
    assert frames["steps"].tolist() == list(range(0, 121, 2))
    assert frames["classes"].shape == (61, 100, 100)
    assert frames["weights"].shape == frames["guesses"].shape == (61, 1000)


def test_points_are_the_runs_own(frames):
    assert (frames["weights"][0] == 1).all()
    assert frames["labeled"].shape == (10, 2) and frames["validation"].shape == (30, 2)
    pool = {tuple(point) for point in frames["points"].tolist()}
    assert {tuple(point) for point in frames["labeled"].tolist()} <= pool
    assert not {tuple(point) for point in frames["validation"].tolist()} & pool
    clean, labels = make_moons(2000, noise=0, random_state=0)  # each point lies by a point of its class
    distances = np.linalg.norm(frames["points"][:, None] - clean, axis=2)
    assert (labels[distances.argmin(1)] == frames["labels"]).mean() > 0.99


def test_the_last_frame_is_the_trained_model(run, frames):
    table = pq.read_table(run / "weights.parquet")
    assert np.array_equal(frames["weights"][-1], table["weight"].to_numpy())
    left, right, bottom, top = frames["extent"]
    x, y = frames["points"].T
    column = np.rint((x - left) / (right - left) * 99).astype(int)
    row = np.rint((y - bottom) / (top - bottom) * 99).astype(int)
    assert (frames["classes"][-1][row, column] == frames["guesses"][-1]).mean() > 0.97
    assert len(np.unique(frames["classes"][-1])) == 2


def test_a_resumed_run_has_all_frames(tmp_path):
    first, second = DecisionBoundary(tmp_path), DecisionBoundary(tmp_path)
    assert first.state_dict() == {}
    first._frames["steps"] += [torch.tensor(0), torch.tensor(2)]
    second.load_state_dict(first.state_dict())
    assert [int(step) for step in second._frames["steps"]] == [0, 2]


def test_nothing_where_inputs_are_no_points():
    from ssl_weighting.app.callbacks.decision_boundary import _in_the_plane

    for shape, in_the_plane in (((1, 8, 8), False), ((2,), True)):
        rows = torch.arange(3)
        examples = ExampleSet(InMemory(torch.zeros(3, *shape), rows), rows, rows)
        assert _in_the_plane(SimpleNamespace(sets={"labeled": examples})) == in_the_plane
