"""What of a pool belongs: found without a foreign label, and said with a probability."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from ssl_weighting.app import belonging
from ssl_weighting.app.belonging import Belonging, _Score, presence_only
from ssl_weighting.errors import UserError


def clusters(seed=0, labels=10, own=300, foreign=300, distance=3.0, width=30):
    """Labelled examples of three classes, then a pool of these and of two others; features and truth."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, width)) * distance / np.sqrt(width) * 2
    truth = np.concatenate(
        [np.repeat(range(3), labels), random.integers(0, 3, own), random.integers(3, 5, foreign)]
    )
    features = centres[truth] + random.normal(size=(len(truth), width))
    return features.astype(np.float32), np.where(truth < 3, truth, -1), 3 * labels


def given(truth, labeled):
    return np.where(np.arange(len(truth)) < labeled, truth, -1)


@pytest.mark.parametrize("foreign", [60, 300, 900])
def test_foreign_examples_are_told_and_their_share_is_about_right(foreign):
    features, truth, labeled = clusters(foreign=foreign)
    found = Belonging(features, given(truth, labeled))
    own = truth[labeled:] >= 0
    assert found.probability.shape == own.shape and found.probability.dtype == np.float32
    assert roc_auc_score(own, found.probability) > 0.97
    assert found.share == pytest.approx(own.mean(), abs=0.25)


def test_a_pool_that_is_clean_is_hardly_accused():
    features, truth, labeled = clusters(foreign=0, own=600)
    assert Belonging(features, given(truth, labeled)).share > 0.8


def test_new_examples_are_told_too():
    features, truth, labeled = clusters(labels=10, own=600, foreign=600)
    fitted = np.arange(len(truth)) % 2 == 0
    fitted[:labeled] = True
    found = Belonging(features[fitted], given(truth, labeled)[fitted])
    new = found(features[~fitted])
    assert roc_auc_score(truth[~fitted] >= 0, new) > 0.97
    assert new.mean() == pytest.approx(found.share, abs=0.1)
    assert found(features[:0]).shape == (0,)


def test_more_than_are_compared_with_each_other_are_scored_as_new_ones(monkeypatch):
    features, truth, labeled = clusters()
    whole = Belonging(features, given(truth, labeled)).probability
    monkeypatch.setattr(belonging, "LARGEST", 200)
    sampled = Belonging(features, given(truth, labeled)).probability
    assert len(sampled) == len(whole) and np.isfinite(sampled).all()
    assert np.corrcoef(whole, sampled)[0, 1] > 0.9


def test_wide_features_are_compared_on_their_axes(monkeypatch):
    features, truth, labeled = clusters()
    monkeypatch.setattr(belonging, "WIDEST", 10)
    found = Belonging(features, given(truth, labeled))
    assert roc_auc_score(truth[labeled:] >= 0, found.probability) > 0.95
    assert np.isfinite(found(features[:5])).all()


@pytest.mark.parametrize("widest", [10, 2048])
def test_what_is_kept_on_the_disk_says_the_same(tmp_path, monkeypatch, widest):
    features, truth, labeled = clusters()
    monkeypatch.setattr(belonging, "WIDEST", widest)
    fitted = Belonging(features[:-100], given(truth, labeled)[:-100])
    path = tmp_path / "belonging.safetensors"
    fitted.save(path)
    kept = Belonging.load(path)
    np.testing.assert_array_equal(kept(features[-100:]), fitted(features[-100:]))
    np.testing.assert_array_equal(kept.probability, fitted.probability)
    assert kept.share == fitted.share and kept.width == 30
    per_example = 2 * min(widest, 30) + 8 * 5 + 4
    assert path.stat().st_size < per_example * len(features) + 40_000


def test_keeping_half_the_digits_of_features_changes_next_to_nothing(monkeypatch):
    """New examples are compared with features in float16, the pool in float32."""
    features, truth, labeled = clusters()
    rounded = Belonging(features[:-100], given(truth, labeled)[:-100])(features[-100:])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "half", torch.Tensor.float)
        exact = Belonging(features[:-100], given(truth, labeled)[:-100])(features[-100:])
    assert 0 < np.abs(rounded - exact).max() < 1e-2


def test_a_file_that_is_not_whole_is_named_with_what_writes_it_again(tmp_path):
    features, truth, labeled = clusters(own=60, foreign=60)
    path = tmp_path / "a run" / "belonging.safetensors"
    path.parent.mkdir()
    Belonging(features, given(truth, labeled)).save(path)
    whole = path.read_bytes()
    for broken in (whole[:-50], whole[:20], b"", whole.replace(b'"line"', b'"lime"')):
        path.write_bytes(broken)
        with pytest.raises(
            UserError, match=r"is no whole file .*; ssl-weighting resume '.*a run' writes it again"
        ):
            Belonging.load(path)


def test_one_label_a_class_gives_no_probability_rather_than_a_wrong_one():
    features, truth, labeled = clusters(labels=1)
    found = Belonging(features, given(truth, labeled))
    assert np.isnan(found.probability).all() and np.isnan(found.share)


def test_a_held_out_example_does_not_vouch_for_itself():
    """The mean of the ranks of labelled examples is that of the pool's own ones; not left out, it is far above."""
    features, truth, labeled = clusters(labels=4, own=600, foreign=0, distance=0.3)
    pool = np.arange(labeled, len(truth))
    found = []
    original = _Score.fit

    def watched(space, rows, labels, in_pool, share):
        score = original(space, rows, labels, in_pool, share)
        if share is None:
            found.append((rows, score(space)))
        return score

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Score, "fit", watched)
        Belonging(features, given(truth, labeled))
    rank = lambda score, rows: (score[pool] < score[rows, None]).mean(1)  # noqa: E731
    whole = rank(found[0][1], np.arange(labeled)).mean()
    held_out = np.concatenate([rank(s, np.setdiff1d(np.arange(labeled), r)) for r, s in found[1:]]).mean()
    assert whole > 0.9 and held_out == pytest.approx(0.5, abs=0.2)


def test_the_likelihood_of_own_examples_alone_finds_the_line():
    """Against a fine grid, on scores whose probability is logistic by construction."""
    random = np.random.default_rng(0)
    pool = random.normal(size=4000)
    pool = (pool - pool.mean()) / pool.std()
    own = random.choice(pool[random.uniform(size=4000) < expit(3 * pool - 1)], 2000)
    found = presence_only(own, pool)
    assert found == pytest.approx([3, -1], abs=0.5)

    def cost(slope, offset):
        likelihood = np.log(expit(slope * own + offset)).sum() - len(own) * np.log(
            expit(slope * pool + offset).mean()
        )
        prior = belonging.STEADY * np.log(slope / belonging.SLOPE) ** 2 + belonging.CENTRED * offset**2
        return prior - likelihood

    grid = [cost(slope, offset) for slope in np.linspace(2, 4, 41) for offset in np.linspace(-2, 0, 41)]
    assert cost(*found) <= min(grid) + 1e-3
