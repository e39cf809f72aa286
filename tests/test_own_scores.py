"""What open-set methods say of each example of the pool: kept, judged and exported."""

import csv

import numpy as np
import pytest
import torch
from command import words

import ssl_weighting
from ssl_weighting.app.cli import main
from ssl_weighting.app.own_scores import own_auroc
from ssl_weighting.app.runs import Run

SHORT = {
    "config": "digits_iomatch",
    "trainer.max_steps": 6,
    "trainer.accelerator": "cpu",
    "trainer.val_check_interval": 3,
    "model.weighting.kind": "fixed",
    "model.weighting.init": 1,
    "data.unlabeled_batch_size": 16,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_scores")
    assert main(["fit", *words(SHORT | {"runs": folder})]) == 0
    (found,) = (folder / "digits_iomatch").iterdir()
    return Run(found)


def test_they_are_of_the_averaged_network_and_the_examples_as_they_are(run):
    images = run.data().sets["unlabeled"].__getitems__(list(range(20))).inputs
    trained = ssl_weighting.load(str(run.directory))
    network = trained.module.ema.model
    with torch.no_grad():
        features = network.backbone(trained.module.views_of(run.data()).plain(images))
        expected = 1 - network.heads["open"](features).softmax(1)[:, 5]
    np.testing.assert_allclose(run.weights["own_score"].to_numpy()[:20], expected, rtol=1e-4)
    assert expected.std() > 0


def test_the_area_is_that_of_counted_pairs(run):
    scores, labels = (run.weights[name].to_numpy() for name in ("own_score", "label"))
    judged = ~np.isin(run.weights["index"].to_numpy(), run.split.labeled.numpy())
    own, foreign = scores[judged & (labels < 5)], scores[judged & (labels >= 5)]
    wins = (own[:, None] > foreign).mean() + (own[:, None] == foreign).mean() / 2
    assert run.metrics["pool/own_auroc_score"][1][-1] == pytest.approx(wins)
    assert own_auroc(torch.rand(4), torch.tensor([0, 1, -1, -1]), 2) is None


def test_they_are_exported(run, tmp_path):
    assert main(["weights", str(run.directory), "--export", str(tmp_path / "all.csv")]) == 0
    with open(tmp_path / "all.csv", newline="") as file:
        found = [float(row["own_score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, run.weights["own_score"].to_numpy(), rtol=1e-6)
