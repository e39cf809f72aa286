"""CTAugment: how policies follow from rates and rates from probes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ssl_weighting.augment import CTAugment, ProbeRecord
from ssl_weighting.augment.ops import RESCALE_METHODS

BLENDS = ["autocontrast", "blur", "equalize", "invert", "smooth"]
ENHANCERS = ["brightness", "color", "contrast", "sharpness"]
GEOMETRY = ["cutout", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
BINS = {
    "identity": (),
    "posterize": (8,),
    "rescale": (17, 6),
    **dict.fromkeys([*BLENDS, *ENHANCERS, *GEOMETRY, "solarize"], (17,)),
}


def only(augment, operation):
    """Make ``augment`` draw nothing but ``operation``."""
    position = augment.operations.index(operation)
    augment._draw_operations = lambda batch: torch.full((batch, augment.depth), position)
    return augment


def with_random_rates(**arguments):
    augment = CTAugment(**arguments)
    augment.rates.mul_(torch.rand(augment.rates.shape, generator=torch.Generator().manual_seed(0)))
    return augment


def test_every_bin_of_the_19_operations_starts_at_one():
    augment = CTAugment()
    assert set(augment.operations) == set(BINS) and len(BINS) == 19
    for operation, rates in zip(augment.operations, augment.rates, strict=True):
        expected = torch.zeros(2, 17)
        for parameter, bins in enumerate(BINS[operation]):
            expected[parameter, :bins] = 1
        assert torch.equal(rates, expected), operation


def test_rates_travel_in_the_state_dict_and_nothing_else_does():
    learned = with_random_rates()
    assert list(learned.state_dict()) == ["rates"]
    fresh = CTAugment()
    fresh.load_state_dict(learned.state_dict())
    torch.manual_seed(0)
    expected = learned.draw(100)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(fresh.draw(100), expected, strict=True))


def test_probabilities_follow_from_rates_and_drop_what_is_below_the_threshold():
    augment = with_random_rates(threshold=0.8, decay=0.99)
    probabilities = augment.probabilities()
    for i, operation in enumerate(augment.operations):
        for parameter in range(2):
            bins = BINS[operation][parameter] if parameter < len(BINS[operation]) else 0
            expected = np.zeros(17)
            if bins:
                p = augment.rates[i, parameter, :bins].numpy() + 0.01
                p = p / p.max()
                p[p < 0.8] = 0
                assert (p == 0).any()
                expected[:bins] = p / p.sum()
            np.testing.assert_allclose(probabilities[i, parameter], expected, atol=1e-6)


def test_draws_have_the_probabilities_of_their_bins():
    torch.manual_seed(0)
    n = 40_000
    augment = with_random_rates(threshold=0.5)
    operations, bins = augment.draw(n)
    assert operations.shape == (n, 2) and bins.shape == (n, 2, 2)
    assert chisquare(torch.bincount(operations.flatten())).pvalue > 0.001
    pvalues = []
    for i, operation in enumerate(augment.operations):
        for parameter in range(len(BINS[operation])):
            drawn = bins[operations == i][:, parameter]
            p = augment.probabilities()[i, parameter].double()
            counts = torch.bincount(drawn, minlength=17)
            assert not counts[p == 0].any()
            alive = p > 0
            if alive.sum() > 1:
                p_alive = p[alive] / p[alive].sum()
                pvalues.append(chisquare(counts[alive], p_alive * counts.sum()).pvalue)
    assert min(pvalues) > 0.001 / len(pvalues)


def test_probes_are_uniform_whatever_the_rates():
    torch.manual_seed(0)
    augment = with_random_rates(threshold=1.0)
    _, record = augment.probe(torch.rand(20_000, 1, 2, 2))
    for i, operation in enumerate(augment.operations):
        drawn = record.bins[record.operations == i]
        for parameter in range(2):
            if parameter < len(BINS[operation]):
                counts = torch.bincount(drawn[:, parameter], minlength=BINS[operation][parameter])
                assert chisquare(counts).pvalue > 1e-4
            else:
                assert (drawn[:, parameter] == -1).all()


def by_hand(rates, record, probabilities, targets, decay):
    """Average the one-at-a-time update over all orders of the hits of a bin."""
    rates = rates.double().numpy().copy()
    hits: dict[tuple[int, int, int], list[float]] = {}
    for example, target in enumerate(targets.tolist()):
        onehot = np.eye(probabilities.shape[1])[target]
        proximity = 1 - 0.5 * np.abs(probabilities[example].double().numpy() - onehot).sum()
        for operation, pair in zip(record.operations[example], record.bins[example], strict=True):
            for parameter, bin_ in enumerate(pair.tolist()):
                if bin_ >= 0:
                    hits.setdefault((int(operation), parameter, bin_), []).append(proximity)
    for where, proximities in hits.items():
        ends = []
        for order in permutations(proximities):
            rate = rates[where]
            for proximity in order:
                rate = decay * rate + (1 - decay) * proximity
            ends.append(rate)
        rates[where] = np.mean(ends)
    return rates, hits


def test_update_is_the_scalar_update_averaged_over_orders():
    torch.manual_seed(0)
    augment = with_random_rates(decay=0.9)
    before = augment.rates.clone()
    # Few operations and bins, so that several examples hit the same bin.
    rescale, blur, identity = (augment.operations.index(name) for name in ("rescale", "blur", "identity"))
    operations = torch.tensor([[rescale, blur], [blur, blur], [rescale, identity], [blur, identity]])
    bins = torch.tensor(
        [[[3, 5], [16, -1]], [[16, -1], [16, -1]], [[3, 2], [-1, -1]], [[0, -1], [-1, -1]]],
    )
    record = ProbeRecord(operations, bins)
    probabilities, targets = torch.rand(4, 10).softmax(1), torch.tensor([0, 9, 4, 4])
    expected, hits = by_hand(before, record, probabilities, targets, 0.9)
    assert max(map(len, hits.values())) == 3
    augment.update(record, probabilities, targets)
    np.testing.assert_allclose(augment.rates, expected, atol=1e-6)
    assert (augment.rates != before).sum() == len(hits)


def test_a_probed_batch_moves_its_rates_towards_the_models_confidence():
    torch.manual_seed(0)
    augment = CTAugment()
    before = augment.rates.clone()
    _, record = augment.probe(torch.rand(64, 3, 32, 32))
    wrong = torch.eye(10)[:1].expand(64, -1)
    augment.update(record, wrong, torch.ones(64, dtype=torch.int64))
    used = augment.rates != before
    assert used.sum() > 50
    assert (augment.rates[used] <= 0.99 + 1e-6).all()


def test_perfect_predictions_keep_the_rates_at_one():
    augment = CTAugment()
    before = augment.rates.clone()
    _, record = augment.probe(torch.rand(64, 1, 8, 8))
    targets = torch.arange(64) % 10
    augment.update(record, torch.eye(10)[targets], targets)
    torch.testing.assert_close(augment.rates, before)


def test_processes_share_one_update(monkeypatch):
    torch.manual_seed(0)
    alone, one_of_two = CTAugment(), CTAugment()
    _, record = alone.probe(torch.rand(8, 1, 8, 8))
    probabilities, targets = torch.rand(8, 5).softmax(1), torch.randint(5, (8,))
    twice = ProbeRecord(*(torch.cat([t, t]) for t in record))
    alone.update(twice, probabilities.repeat(2, 1), targets.repeat(2))
    # The other process saw the same batch.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.mul_(2))
    one_of_two.update(record, probabilities, targets)
    torch.testing.assert_close(one_of_two.rates, alone.rates)


def test_update_refuses_another_batch():
    augment = CTAugment()
    _, record = augment.probe(torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="4, 3 and 3"):
        augment.update(record, torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("operation", ["translate_x", "translate_y"])
def test_translations_move_pixels_by_up_to_three_tenths(operation):
    torch.manual_seed(0)
    augment = only(CTAugment(depth=1), operation)
    images = torch.full((400, 1, 40, 40), 0.9)
    views, _ = augment.probe(images)
    uncovered = (views == 0.5).flatten(1).sum(1) / 40
    assert uncovered.max() == 12
    assert (uncovered > 0).float().mean() > 0.9


@pytest.mark.parametrize("operation", [o for o in BINS if o != "identity"])
def test_every_operation_changes_images(operation):
    torch.manual_seed(0)
    images = torch.rand(200, 3, 32, 32) * 0.8
    views, _ = only(CTAugment(depth=1), operation).probe(images)
    changed = (views != images).flatten(1).any(1)
    assert changed.float().mean() > 0.8


def test_each_filter_bin_picks_its_filter():
    augment = only(CTAugment(depth=1), "rescale")
    image = torch.rand(1, 1, 16, 16)
    bins = torch.tensor([[[16, method]] for method in range(len(RESCALE_METHODS))])
    operations = augment._draw_operations(len(bins))
    views = augment._augment(image.expand(len(bins), -1, -1, -1), operations, bins)
    assert len(views.unique(dim=0)) == len(RESCALE_METHODS) - 1  # box and nearest are the same enlargement


def test_views_end_with_a_cutout_of_half_the_width():
    torch.manual_seed(0)
    views = only(CTAugment(), "identity")(torch.zeros(300, 3, 32, 32))
    holes = (views == 0.5).all(1)
    assert holes.any(1).sum(1).max() == 16
    assert holes.flatten(1).any(1).all()
