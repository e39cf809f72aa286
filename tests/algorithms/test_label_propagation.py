"""Label propagation and the ensemble: the graph against dense algebra, surveys when they are due, what they are worth."""

import math

import numpy as np
import pytest
import torch

from ssl_weighting.algorithms.base import Context, Survey
from ssl_weighting.algorithms.ensemble import Ensemble
from ssl_weighting.algorithms.graph import carried, neighbour_graph, propagate, sample_of
from ssl_weighting.algorithms.label_propagation import LabelPropagation
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.errors import UserError
from ssl_weighting.module import SSLModule
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions


def clusters(n=120, dim=6, classes=3, seed=0):
    """Points around the corners of a simplex, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return 4 * torch.eye(dim)[labels] + torch.randn(n, dim, generator=generator), labels


def survey(features, labels, labeled, step=0, probabilities=None):
    uniform = torch.full((len(features), int(labels.max()) + 1), 1 / (int(labels.max()) + 1))
    return Survey(
        features, uniform if probabilities is None else probabilities, labeled, labels[labeled], step
    )


def test_of_very_many_a_sample_makes_the_graph_and_the_others_ask_their_nearest(monkeypatch):
    features, labels = clusters(300)
    labeled = torch.tensor([3, 7, 8, 290, 293, 295])
    rows = sample_of(300, labeled, 60)
    assert len(rows) == 60 and torch.isin(labeled, rows).all() and (rows.diff() > 0).all()
    assert sample_of(300, labeled, 300).equal(torch.arange(300))
    shares = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("ssl_weighting.algorithms.graph.BLOCK", 60 * 7)  # several blocks
    found = carried(features, rows, shares, 4, 0.07)
    unit = (features / features.norm(dim=1, keepdim=True)).double()
    for i in {*range(300)} - {*rows.tolist()}:
        nearest = sorted(range(60), key=lambda j, i=i: -float(unit[i] @ unit[rows[j]]))[:4]
        weight = torch.stack([((unit[i] @ unit[rows[j]] - 1) / 0.07).exp() for j in nearest])
        expected = (weight[:, None] * shares[nearest].double()).sum(0) / weight.sum()
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-4, atol=1e-6)
    assert found[rows].equal(shares)
    whole, sampled = (LabelPropagation(largest=n) for n in (300, 60))
    for method in (whole, sampled):
        method.prepare(300, 3)
        method.survey(survey(features, labels, labeled))
    right = [(method.targets.argmax(1) == labels).float().mean() for method in (whole, sampled)]
    assert min(right) > 0.95


def test_propagation_agrees_with_dense_algebra():
    features, labels = clusters(40)
    graph, _ = neighbour_graph(features, neighbours=4, temperature=0.07)
    unit = features / features.norm(dim=1, keepdim=True)
    similar = (unit @ unit.T).double()
    a = np.zeros((40, 40))
    for i in range(40):
        others = sorted((j for j in range(40) if j != i), key=lambda j: -similar[i, j])[:4]
        for j in others:
            a[i, j] = a[j, i] = math.exp((similar[i, j] - 1) / 0.07)
    d = a.sum(1)
    np.testing.assert_allclose(graph.toarray(), a / np.sqrt(d[:, None] * d[None]), rtol=1e-5)
    labeled = torch.tensor([0, 1, 2, 3])  # class 0 twice: each has half of its mass
    y = np.zeros((40, 3))
    y[[0, 1, 2, 3], [0, 1, 2, 0]] = [0.5, 1, 1, 0.5]
    limit = (1 - 0.5) * np.linalg.solve(np.eye(40) - 0.5 * graph.toarray(), y)
    found = propagate(graph, labeled, labels[labeled], 3, spread=0.5, rounds=80)
    np.testing.assert_allclose(found, limit / limit.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_examples_that_no_label_reaches_stay_undecided():
    features = torch.cat([torch.eye(4)[:2].repeat(5, 1), torch.eye(4)[2:].repeat(5, 1)])
    graph, _ = neighbour_graph(features + 1e-3 * torch.rand(20, 4), neighbours=3, temperature=0.05)
    found = propagate(graph, torch.tensor([0, 1]), torch.tensor([0, 1]), 2, spread=0.9)
    assert (found[:10].argmax(1) == torch.arange(10) % 2).all()
    assert (found[10:] == 0.5).all()


@pytest.mark.parametrize("method", [LabelPropagation, Ensemble])
def test_finds_the_clusters_and_weighs_by_certainty(method):
    features, labels = clusters()
    labeled = torch.arange(6)
    algorithm = method()
    algorithm.prepare(len(features), 3)
    algorithm.survey(survey(features, labels, labeled))
    assert (algorithm.targets.argmax(1) == labels).float().mean() > 0.97
    assert (algorithm.certainty[labeled] == 0).all()  # the supervised term has them
    assert algorithm.certainty.mean() == pytest.approx(1)
    assert (algorithm.certainty >= 0).all()


def test_the_ensemble_multiplies_the_graph_by_the_classifier():
    features, labels = clusters()
    labeled, own = torch.arange(6), torch.randn(120, 3).softmax(1)
    graph, both = LabelPropagation(), Ensemble()
    for algorithm in (graph, both):
        algorithm.prepare(len(features), 3)
        algorithm.survey(survey(features, labels, labeled, step=10, probabilities=own))
    product = graph.targets * own
    kept = graph.targets.amin(1) > 1e-6
    assert kept.sum() > 20
    expected = (product / product.sum(1, keepdim=True))[kept]
    torch.testing.assert_close(both.targets[kept], expected, rtol=1e-4, atol=1e-6)


def test_surveys_are_due_before_the_first_step_and_at_even_distances():
    algorithm = Ensemble(surveys=4)
    due = [step for step in range(101) if algorithm.survey_due(Context(step, 100, None))]
    assert due == [0, 25, 50, 75]
    assert [s for s in range(9) if LabelPropagation().survey_due(Context(s, 8, None))] == [0]


@pytest.mark.parametrize("option", ["neighbours", "surveys"])
def test_refuses_what_makes_no_graph(option):
    with pytest.raises(UserError, match=f"model.algorithm.{option}=0: must be at least 1"):
        LabelPropagation(**{option: 0})


def trained(algorithm, steps=60, kind="fixed"):
    features, labels = clusters(300, seed=1)
    given = torch.where(torch.arange(300) < 12, labels, -1)
    data = TensorData(
        features, given, augmentations={"weak": lambda x: x}, num_labeled=6, num_validation=6,
        labeled_batch_size=6, unlabeled_batch_size=100, validation_batch_size=6,
    )  # fmt: skip
    module = SSLModule(
        3, Precomputed(6), algorithm,
        weighting=WeightingOptions(kind=kind, inner_steps=5, warmup_steps=10),
        theta=ThetaOptions(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), ema_decay=0.9),
    )  # fmt: skip
    bare_trainer(steps, "cpu").fit(module, data)
    return module, data, features, labels


@pytest.mark.parametrize("kind", ["fixed", "per_example"])
def test_trains_on_features(kind):
    module, data, features, labels = trained(Ensemble(surveys=2), kind=kind)
    assert (module.probabilities(features).argmax(1) == labels).float().mean() > 0.97
    moved = module.weighting.known(torch.arange(data.num_unlabeled))[1].updates > 0
    assert bool(moved.any()) == (kind == "per_example")
