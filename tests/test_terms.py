"""Distances: values against other implementations, derivatives against autograd; terms."""

import pytest
import torch
import torch.nn.functional as F

from ssl_weighting.terms import (
    CROSS_ENTROPY,
    ENTROPY,
    KL_DIVERGENCE,
    SQUARED_ERROR,
    Distance,
    LossTerm,
    Objective,
    OneVsAll,
)

DISTANCES = [CROSS_ENTROPY, KL_DIVERGENCE, SQUARED_ERROR, ENTROPY]
DISTANCES += [OneVsAll(each) for each in (CROSS_ENTROPY, SQUARED_ERROR, ENTROPY)]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 4).double(), torch.randn(6, 4).double().softmax(-1), torch.randn(6, 4).double()


def test_every_distance_is_tested():
    def leaves(cls):
        return {cls} | {c for s in cls.__subclasses__() for c in leaves(s)}

    own = {c for c in leaves(Distance) if c.__module__ == "ssl_weighting.terms"}
    assert own - {Distance} == {type(d) for d in DISTANCES}


def test_values(batch):
    z, y, _ = batch
    p = z.softmax(-1)
    hard = y.argmax(-1)
    torch.testing.assert_close(CROSS_ENTROPY.value(z, y), F.cross_entropy(z, y, reduction="none"))
    torch.testing.assert_close(
        CROSS_ENTROPY.value(z, F.one_hot(hard, 4).double()), F.cross_entropy(z, hard, reduction="none")
    )
    torch.testing.assert_close(
        KL_DIVERGENCE.value(z, y), F.kl_div(z.log_softmax(-1), y, reduction="none").sum(-1)
    )
    torch.testing.assert_close(SQUARED_ERROR.value(z, y), F.mse_loss(p, y, reduction="none").mean(-1))
    torch.testing.assert_close(ENTROPY.value(z, y), torch.distributions.Categorical(logits=z).entropy())


def test_values_of_pairs(batch):
    """Two classes, each a logistic regression of its "yes" less its "no"."""
    z, y, _ = batch
    y = torch.stack((1 - y[:, :2], y[:, :2]), -1).flatten(1)
    margin, wanted = z[:, 1::2] - z[:, ::2], y[:, 1::2]
    p = torch.sigmoid(margin)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(
        OneVsAll(CROSS_ENTROPY).value(z, y),
        F.binary_cross_entropy_with_logits(margin, wanted, reduction="none").sum(1),
    )
    torch.testing.assert_close(OneVsAll(SQUARED_ERROR).value(z, y), (p - wanted).square().sum(1))
    torch.testing.assert_close(OneVsAll(ENTROPY).value(z, y), entropy.sum(1))
    one_pair = torch.cat((y[:, :2], torch.zeros(6, 2).double()), 1)
    torch.testing.assert_close(
        OneVsAll(CROSS_ENTROPY).value(z, one_pair), F.cross_entropy(z[:, :2], y[:, :2], reduction="none")
    )


def test_kl_of_a_hard_target_is_finite(batch):
    z, y, _ = batch
    hard = F.one_hot(y.argmax(-1), 4).double()
    torch.testing.assert_close(KL_DIVERGENCE.value(z, hard), CROSS_ENTROPY.value(z, hard))


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("soft_sum", [1.0, 0.6])
def test_derivatives(batch, distance, soft_sum):
    z, y, direction = batch
    y = y * soft_sum
    gradient, hessian = distance.gradient(z, y), distance.hessian(z, y)
    product = distance.hessian_product(z, y, direction)
    for i in range(len(z)):

        def one(logits, i=i):
            return distance.value(logits[None], y[i : i + 1])[0]

        expected = torch.autograd.functional.hessian(one, z[i])
        torch.testing.assert_close(gradient[i], torch.autograd.functional.jacobian(one, z[i]))
        torch.testing.assert_close(hessian[i], expected)
        torch.testing.assert_close(product[i], expected @ direction[i])


def term(logits, target, **options):
    ones = torch.ones(len(logits), dtype=logits.dtype)
    return LossTerm("t", None, logits, logits, target, CROSS_ENTROPY, **({"mask": ones} | options))


def test_loss_is_scale_times_the_mean_over_all_examples(batch):
    z, y, _ = batch
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).double()
    weights = torch.rand(6).double()
    loss = term(z, y, mask=mask, scale=3.0, row=torch.arange(6)).loss(weights)
    expected = 3 * sum(float(weights[i] * mask[i] * F.cross_entropy(z[i], y[i])) for i in range(6)) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_objective_sums_its_terms(batch):
    z, y, _ = batch
    weights = torch.rand(6).double()
    first, second = term(z, y), term(z, y, row=torch.arange(6), scale=0.5)
    expected = first.loss() + second.loss(weights)
    torch.testing.assert_close(Objective([first, second], [None, weights]).loss(), expected)


def test_low_precision_logits_are_raised_before_the_softmax():
    z = torch.full((1, 3), 40.0, dtype=torch.bfloat16)
    value = term(z, torch.eye(3)[:1], mask=torch.ones(1)).losses()
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(1.0986, abs=1e-4)
