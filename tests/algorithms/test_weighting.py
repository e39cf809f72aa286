"""Every method under weights: at 1 it is the plain method; learned, they move by the right influence."""

import pytest
import torch
from lightning.pytorch import seed_everything
from modules import digits, ssl_module
from torch.func import functional_call

from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.iomatch import IOMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.openmatch import OpenMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective

METHODS = {
    "pseudo_label": lambda: PseudoLabel(threshold=0.6),
    "vat": lambda: VAT(),
    "mean_teacher": lambda: MeanTeacher(),
    "mixmatch": lambda: MixMatch(),
    "uda": lambda: UDA(threshold=0.6),
    "remixmatch": lambda: ReMixMatch(num_strong=2),
    "fixmatch": lambda: FixMatch(threshold=0.6),
    "fixmatch_cta": lambda: FixMatch(threshold=0.6, strong=[CTAugment()]),
    "flexmatch": lambda: FlexMatch(threshold=0.6),
    "freematch": lambda: FreeMatch(fairness_coefficient=0.1),
    "softmatch": lambda: SoftMatch(),
    "openmatch": lambda: OpenMatch(threshold=0.4),
    "iomatch": lambda: IOMatch(threshold=0.6),
}
DAMPING = {"mixmatch": 200.0, "mean_teacher": 100.0}  # squared error is not convex; the rest: 1
every_method = pytest.mark.parametrize("name", METHODS)


def objective(terms, weights):
    return Objective(terms, [None if t.row is None else weights[t.row] for t in terms])


@every_method
def test_weights_of_one_are_the_plain_method(case, name):
    c = case(METHODS[name](), step=500)
    terms = c.terms()
    plain = Objective(terms, [None] * len(terms)).loss()
    weighted = objective(terms, torch.ones(40).double()).loss()
    assert torch.equal(plain, weighted)
    expected = torch.autograd.grad(plain, list(c.net.parameters()), retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(weighted, list(c.net.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@every_method
def test_a_weight_scales_its_examples_terms_and_no_others(case, name):
    c = case(METHODS[name](), step=500)
    terms = c.terms()
    weights = torch.ones(40).double().requires_grad_()
    found = torch.autograd.grad(objective(terms, weights).loss(), weights)[0]
    expected = torch.zeros(40).double()
    for t in terms:
        if t.row is not None:
            for row, u in enumerate(t.row.tolist()):
                value = t.distance.value(t.logits[row : row + 1], t.target[row : row + 1])[0]
                expected[u] += t.scale * t.mask[row] * value.detach() / len(t.row)
    torch.testing.assert_close(found, expected)
    assert expected[c.index].abs().sum() > 0


@every_method
def test_influence_is_that_of_dense_autograd(case, name):
    c = case(METHODS[name](), step=500)
    c.terms()
    terms = c.lambda_terms()
    torch.manual_seed(3)
    weights = torch.rand(40).double() + 0.5
    with torch.no_grad():
        out = c.net.eval()(torch.randn(5, 3, 8, 8).double())
    target = torch.eye(4).double()[torch.randint(4, (5,))]
    ones = torch.ones(5).double()
    validation = LossTerm("v", out.inputs, out.features, out.logits, target, CROSS_ENTROPY, ones)
    damping = DAMPING.get(name, 1.0)
    found = ExactLastLayer(damping)(c.net, objective(terms, weights), validation)

    head = c.net.heads["classifier"]
    shape = head.weight.shape
    theta = torch.cat([head.weight.detach().flatten(), head.bias.detach()])

    def losses(theta, t):
        parameters = {"weight": theta[: shape.numel()].view(shape), "bias": theta[shape.numel() :]}
        return t.distance.value(functional_call(head, parameters, (t.features,)), t.target)

    def training(theta):
        total = 0.0
        for t in terms:
            if t.head == "classifier":
                w = 1.0 if t.row is None else weights[t.row]
                total = total + t.scale * (w * t.mask * losses(theta, t)).mean()
        return total

    hessian = torch.autograd.functional.hessian(training, theta) + damping * torch.eye(len(theta)).double()
    gradient = torch.autograd.functional.jacobian(lambda t: losses(t, validation).mean(), theta)
    solution = torch.linalg.solve(hessian, gradient)
    expected = [
        torch.zeros(8).double()
        if t.head != "classifier"
        else -t.scale * torch.autograd.functional.jacobian(lambda x, t=t: losses(x, t), theta) @ solution
        for t in terms
        if t.row is not None
    ]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-9)
    assert torch.stack(expected).abs().sum() > 0


def train(algorithm, damping=1.0, steps=4, precision="32-true", **options):
    seed_everything(0)
    defaults = {"weighting_inner_steps": 2, "weighting_update_masked": True}
    net = SmallConvNet(1, channels=(8, 8))
    module = ssl_module(10, net, algorithm, influence=ExactLastLayer(damping), **(defaults | options))
    bare_trainer(steps, "cpu", precision=precision).fit(module, digits())
    return module


@every_method
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_training_moves_the_weights_of_seen_examples(name, precision):
    module = train(METHODS[name](), DAMPING.get(name, 1.0), precision=precision)
    moved = module.weighting.weights.values != 1
    assert moved.any()
    assert moved.sum() <= 2 * 16  # two Λ steps of 16 examples
    assert torch.equal(moved, module.weighting.stats.updates > 0)
    if name == "fixmatch_cta":  # learned while training, and part of the checkpoint
        rates = module.state_dict()["algorithm.strong.0.rates"]
        assert ((rates > 0) & (rates < 1)).any()


def test_training_with_fixed_weights_leaves_them():
    module = train(MixMatch(), steps=3, weighting_kind="fixed")
    assert (module.weighting.weights.values == 1).all()


def test_the_primary_of_a_mixture_is_weighted(case, monkeypatch):
    """λ of an example moves the loss of those mixtures of which it is the larger share, and no others."""
    from ssl_weighting.algorithms import mixmatch

    c = case(MixMatch(num_views=1), step=500)
    share = torch.linspace(0.55, 0.95, 14).double()
    partner = torch.arange(14).roll(5)
    monkeypatch.setattr(mixmatch, "draw_mixing", lambda size, alpha, like: (share, partner))
    everything = torch.cat([c.labeled.inputs, c.view("weak_1")])
    (known, term) = c.terms()
    assert torch.equal(term.row, c.index)
    for row in range(8):  # the mixture in row i is mostly example i of the batch
        expected = (
            share[6 + row] * c.view("weak_1")[row] + (1 - share[6 + row]) * everything[partner[6 + row]]
        )
        torch.testing.assert_close(term.inputs[row], expected)
    assert known.row is None  # labelled primaries weigh 1, although unlabelled examples are mixed in:
    assert (partner[:6] >= 6).any()
    weights = torch.ones(40).double()
    full, each = objective([known, term], weights).loss(), term.scale * term.losses() / 8
    for i in range(8):
        without = objective([known, term], weights.index_fill(0, c.index[i : i + 1], 0)).loss()
        torch.testing.assert_close(without, full - each[i])
