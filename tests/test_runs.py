"""Opening a run's folder: what it says, and every way in which it can be damaged."""

import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_weighting.app.runs import Run
from ssl_weighting.errors import UserError


@pytest.fixture
def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / tiny_run.parent.name / tiny_run.name)


def test_a_run_says_what_it_is(tiny_run):
    run = Run(tiny_run)
    assert run.recipe == "digits_uda"
    assert run.config["trainer"]["max_steps"] == 9
    steps, errors = run.metrics["validation/error"]
    assert steps.tolist() == [3, 6, 9], "the last evaluation, made twice, counts once"
    assert ((errors >= 0) & (errors <= 1)).all()
    assert len(run.weights) == len(run.split.unlabeled)
    assert run.timing["steps"] == 9
    assert 0 < run.timing["evaluation_seconds"] < run.timing["seconds"]


def test_the_history_of_the_weights_agrees_with_the_metrics(tiny_run):
    run = Run(tiny_run)
    history = run.weight_history
    assert history.steps.tolist() == [0, 3, 6, 9]
    assert (history.counts.sum(1) == len(run.weights)).all()
    assert history.low[1:] == pytest.approx(run.metrics["weights/min"][1][1:])
    assert history.high[1:] == pytest.approx(run.metrics["weights/max"][1][1:])
    counts, _ = np.histogram(run.weights["weight"].to_numpy().astype(np.float64), 64)
    assert (counts == history.counts[-1]).all()


def test_the_data_are_those_of_the_run(tiny_run):
    run = Run(tiny_run)
    data = run.data()
    assert (data.sets["unlabeled"].rows == run.split.unlabeled).all()
    assert (data.sets["unlabeled"].rows.numpy() == run.weights["index"].to_numpy()).all()
    assert "test" not in data.sets


def refused(action, pattern):
    with pytest.raises(UserError) as caught:
        action()
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_run(tiny_run, tmp_path):
    refused(lambda: Run(tmp_path / "nowhere"), "no such folder")
    refused(lambda: Run(tmp_path), "no config.yaml")
    assert Run(tiny_run.parent).directory == tiny_run.resolve(), "the only run that it holds"
    refused(lambda: Run(tiny_run.parents[1]), f"did you mean .*{tiny_run.name}")


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("config.yaml", "config"),
        ("metrics.csv", "metrics"),
        ("weights_history.csv", "weight_history"),
        ("weights.parquet", "weights"),
        ("split.json", "split"),
        ("timing.json", "timing"),
    ],
)
def test_damaged_files(copy, name, attribute):
    (copy / name).write_bytes(b"\xff\xfe {{ [not\n1,2")
    refused(lambda: getattr(Run(copy), attribute), f"{name}.*damaged|{name}: not ")


def test_missing_files(copy):
    for name, attribute in (
        ("metrics.csv", "metrics"),
        ("weights.parquet", "weights"),
        ("split.json", "split"),
    ):
        (copy / name).unlink()
        refused(lambda attribute=attribute: getattr(Run(copy), attribute), f"{name}: no such file")
    (copy / "timing.json").unlink()
    (copy / "weights_history.csv").unlink()
    assert Run(copy).timing == {}
    assert Run(copy).weight_history is None


def test_a_last_row_that_was_cut_off_is_left_out(copy):
    with open(copy / "metrics.csv", "a") as file:
        file.write("12,0.5")
    assert Run(copy).metrics["validation/error"][0].tolist() == [3, 6, 9]


def test_foreign_files(copy):
    (copy / "config.yaml").write_text("recipe: pancakes\n")
    refused(lambda: Run(copy).config, "not the configuration of a run")
    pq.write_table(pa.table({"weight": [1.0]}), copy / "weights.parquet")
    refused(lambda: Run(copy).weights, "not the weights of a run, index")


def test_weights_of_another_run(copy):
    pq.write_table(Run(copy).weights.slice(1), copy / "weights.parquet")
    refused(lambda: Run(copy).data(), "they are of different runs")


def test_data_that_are_not_there_any_more(copy):
    text = (copy / "config.yaml").read_text()
    start = text.index("data:\n  class_path")
    stop = text.index("\nruns:")
    moved = "data:\n  class_path: Cifar10\n  init_args: {root: nowhere, download: false}"
    (copy / "config.yaml").write_text(text[:start] + moved + text[stop:])
    refused(lambda: Run(copy).data(), "data.root=")
    (copy / "config.yaml").write_text(text[:start] + "data:\n  class_path: NoSuchSet" + text[stop:])
    refused(lambda: Run(copy).data(), "config.yaml: data: .*NoSuchSet")
