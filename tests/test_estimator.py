"""The scikit-learn estimator."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import check_estimator

from ssl_weighting import SSLClassifier
from ssl_weighting.algorithms.label_propagation import LabelPropagation
from ssl_weighting.app import estimator
from ssl_weighting.app.heads import Axes, BoundedNewton
from ssl_weighting.app.mixture import Mixture
from ssl_weighting.errors import UserError
from ssl_weighting.probe import calibrated, cross_entropy, fit_probe, folds_of

POOL = -1


def digits(labels_a_class=4, pool=400, seed=0):
    """Pixels of real digits, the labels of a few; the others are tested on."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order], y[order]
    labeled = np.concatenate([np.flatnonzero(y == c)[:labels_a_class] for c in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), labeled)
    rows = np.concatenate([labeled, rest[:pool]])
    given = np.where(np.arange(len(rows)) < len(labeled), y[rows], POOL)
    return x[rows], given, x[rest[pool:]], y[rest[pool:]]


@pytest.fixture(scope="module")
def fitted():
    x, y, test, truth = digits()
    return SSLClassifier(max_steps=150).fit(x, y), x, y, test, truth


def test_is_better_than_the_labels_alone_and_says_so(fitted):
    model, _, _, test, truth = fitted
    with_pool = (model.predict(test) != truth).mean()
    probe = (model.baseline_.probabilities(model._standardised(test)).argmax(1) != truth).mean()
    assert model.used_pool_
    assert model.cross_validated_loss_ < model.baseline_.loss
    assert with_pool < probe - 0.02


def test_gives_a_weight_for_every_example_of_the_pool(fitted):
    model, x, y, _, _ = fitted
    assert model.weights_.shape == ((y == POOL).sum(),)
    assert model.weights_.std() > 0
    probabilities = model.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1)


class Turned(LabelPropagation):
    """Pseudo-labels of the next class."""

    def pseudo_labels(self, seen):
        return super().pseudo_labels(seen).roll(1, 1)


def test_hands_over_the_labels_alone_where_the_pool_does_harm():
    x, y, test, _ = digits(10, 200)
    model = SSLClassifier(algorithm=partial(Turned, coefficient=10.0)).fit(x, y)
    probe = model.baseline_.probabilities(model._standardised(test))
    assert not model.used_pool_
    np.testing.assert_array_equal(model.predict_proba(test), probe)
    assert (model.pool_probabilities(test).argmax(1) != probe.argmax(1)).mean() > 0.2


def test_a_model_that_is_right_more_often_is_not_refused_for_being_too_sure():
    """Held-out predictions of 200 examples: the pool's right in 90 %, near certainty; the probe's in 75 %, fittingly."""
    labels = np.tile([0, 1], 100)

    def sure(p, share_right):
        right = np.arange(200) < 200 * share_right
        first = np.where(right == (labels == 0), p, 1 - p)
        return np.c_[first, 1 - first]

    probe, pool = sure(0.75, 0.75), sure(0.9999, 0.9)
    assert cross_entropy(pool, labels).mean() > cross_entropy(probe, labels).mean()
    assert Mixture.of(probe, pool, labels).share == 1
    assert Mixture.of(pool, probe, labels).share == 0
    assert calibrated(pool, labels) > 2


def test_axes_keep_lengths_and_angles():
    features = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32)
    turned = Axes.of(features, 99)(features)
    centred = features - features.mean(0)
    np.testing.assert_allclose(turned @ turned.T, centred @ centred.T, atol=1e-3)
    assert Axes.of(features[:, :20], 5)(features[:, :20]).shape == (30, 5)


def test_the_shaped_optimiser_ends_where_the_loss_is_least():
    """From zero: what all classes have in common changes no prediction, and only the decay, which is slow, pulls it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 12, generator=generator) * torch.logspace(-2, 1, 12)
    target = torch.randint(0, 3, (200,), generator=generator)
    head = torch.nn.Linear(12, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = BoundedNewton(head.parameters(), features[:20], features, decay=0.01, bound=1.0, scale=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), target).backward()
        optimizer.step()
    loss = torch.nn.functional.cross_entropy(head(features), target)
    gradients = torch.autograd.grad(loss, list(head.parameters()))
    for parameter, gradient in zip(head.parameters(), gradients, strict=True):
        assert (gradient + 0.01 * parameter).abs().max() < 1e-5


def test_weights_and_choice_can_be_left_out():
    x, y, test, _ = digits(2, 60)
    model = SSLClassifier(max_steps=10, learn_weights=False, choose=False).fit(x, y)
    assert (model.weights_ == 1).all()
    assert model.pool_share_ == 1
    np.testing.assert_array_equal(model.predict_proba(test), model.pool_probabilities(test))
    with pytest.raises(ValueError, match="there was no pool"):
        SSLClassifier().fit(x[y != POOL], y[y != POOL]).pool_probabilities(test)


def test_is_the_same_twice_and_leaves_random_numbers_alone():
    x, y, test, _ = digits(2, 60)
    before = torch.get_rng_state()
    first, second = (SSLClassifier(max_steps=20).fit(x, y).predict_proba(test) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_takes_names_and_an_encoder():
    x, y, test, truth = digits(3, 100)
    names = [None if label == POOL else f"digit {label}" for label in y]
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32)).train()
    model = SSLClassifier(lambda images: encoder(torch.as_tensor(images).float()), max_steps=40)
    predicted = model.fit(x.reshape(-1, 8, 8), names).predict(test.reshape(-1, 8, 8))
    assert set(predicted) <= set(model.classes_) == {f"digit {c}" for c in range(10)}
    assert (predicted == [f"digit {c}" for c in truth]).mean() > 0.6


def test_says_where_weights_are_too_many_to_learn(monkeypatch):
    monkeypatch.setattr(estimator, "UNKNOWNS", 100)
    x, y, _, _ = digits(2, 60)
    with pytest.warns(UserWarning, match="every example of the pool counts alike"):
        model = SSLClassifier(max_steps=20).fit(x, y)
    assert (model.weights_ == 1).all()


def test_refuses_labels_that_teach_nothing():
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="the labels hold 1 class"):
        SSLClassifier().fit(x, np.r_[np.zeros(5), np.full(15, POOL)])
    with pytest.raises(ValueError, match="19 labels for 20 examples"):
        SSLClassifier().fit(x, np.zeros(19))
    with pytest.raises(UserError, match="at least one of each"):
        fit_probe(x[:4], np.array([0, 0, 2, 2]))


def test_the_probe_is_cross_validated():
    x, y, test, truth = digits(5, 0)
    probe = fit_probe(x / 16, y)
    assert len(list(folds_of(y))) == 5
    assert probe.error == pytest.approx((probe.held_out.argmax(1) != y).mean())
    assert abs(probe.error - (probe.probabilities(test / 16).argmax(1) != truth).mean()) < 0.1
    alone = fit_probe(x[::5] / 16, y[::5])
    assert alone.held_out is None
    assert np.isnan(alone.error)


@pytest.mark.slow
def test_scikit_learn_accepts_it():
    results = check_estimator(SSLClassifier(max_steps=20), on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    # Where −1 is a class of theirs, it is the pool here, as in scikit-learn's own semi-supervised classifiers.
    assert failed == {"check_classifiers_classes"}
