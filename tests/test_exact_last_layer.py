"""The exact last layer against dense float64 autograd: −∇L(V)ᵀ H⁻¹ ∇ℓ_u, nothing of the closed forms used."""

import subprocess
import sys

import pytest
import torch
from torch.func import functional_call

from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.errors import UserError
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, ENTROPY, KL_DIVERGENCE, SQUARED_ERROR, LossTerm, Objective


class Given(Backbone):
    """The inputs are the features."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, inputs):
        return inputs


def make(classes=3, dim=4, labeled=6, unlabeled=9, validation=5, distance=CROSS_ENTROPY, seed=0, **head):
    torch.manual_seed(seed)
    network = Classifier(Given(dim), classes, **head).double()
    torch.nn.init.normal_(network.heads["classifier"].weight, std=0.5)
    torch.nn.init.normal_(network.heads["classifier"].bias, std=0.5)

    def term(n, kind, **options):
        out = network(torch.randn(n, dim).double())
        target = torch.randn(n, classes).double().softmax(-1)
        return LossTerm("t", out.inputs, out.features.detach(), out.logits.detach(), target, kind, **options)

    ones = torch.ones(labeled).double()
    mask = (torch.rand(unlabeled) < 0.7).double()
    terms = [
        term(labeled, CROSS_ENTROPY, mask=ones),
        term(unlabeled, distance, mask=mask, row=torch.arange(unlabeled), scale=0.7),
    ]
    objective = Objective(terms, [None, torch.rand(unlabeled).double() + 0.5])
    return network, objective, term(validation, CROSS_ENTROPY, mask=torch.ones(validation).double())


def dense(network, objective, validation, damping, bias=True):
    """Autograd of the same losses in one flat parameter vector."""
    head = network.heads["classifier"]
    shape = head.weight.shape
    flat = torch.cat([head.weight.detach().flatten(), *([head.bias.detach()] if bias else [])])

    def logits(theta, term):
        parameters = {"weight": theta[: shape.numel()].view(shape)}
        parameters["bias"] = theta[shape.numel() :] if bias else head.bias.detach()
        return functional_call(head, parameters, (term.features,))

    def losses(theta, term):
        return term.distance.value(logits(theta, term), term.target)

    def training(theta):
        total = 0
        for term, weights in zip(objective.terms, objective.weights, strict=True):
            each = term.mask * losses(theta, term)
            total = total + term.scale * (each if weights is None else weights * each).mean()
        return total

    hessian = torch.autograd.functional.hessian(training, flat)
    # δ|θ|²/2 of a head with one logit a class; (f, −f) holds every weight twice
    copies = 2 if head.basis is not None else 1
    hessian += damping * copies * torch.eye(len(flat)).double()
    gradient = torch.autograd.functional.jacobian(lambda t: losses(t, validation).mean(), flat)
    solution = torch.linalg.pinv(hessian, hermitian=True, rtol=1e-11) @ gradient
    return [
        -term.scale
        * torch.autograd.functional.jacobian(lambda t, term=term: losses(t, term), flat)
        @ solution
        for term in objective.terms
        if term.row is not None
    ]


def agree(influence, case, damping, rtol=1e-6, **options):
    (found,), (expected,) = influence(*case), dense(*case, damping, **options)
    assert (found - expected).norm() <= rtol * expected.norm()
    assert expected.norm() > 1e-3


@pytest.mark.parametrize("damping", [1e-6, 5e-4, 1.0])
@pytest.mark.parametrize("dim", [4, 40])  # fewer and more dimensions than examples
def test_cross_entropy(dim, damping):
    agree(ExactLastLayer(damping), make(dim=dim), damping, rtol=1e-6)


def test_presets():
    assert ExactLastLayer("paper").damping == 5e-4
    agree(ExactLastLayer("reference_code", bias=False), make(), 1.0, bias=False)


def test_pseudo_inverse():
    agree(ExactLastLayer(0.0), make(), 0.0)


@pytest.mark.parametrize("distance", [KL_DIVERGENCE, SQUARED_ERROR, ENTROPY])
def test_other_distances(distance):
    agree(ExactLastLayer(0.5), make(distance=distance), 0.5)


@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("distance", [CROSS_ENTROPY, SQUARED_ERROR])
def test_conjugate_gradients(dim, distance):
    agree(ExactLastLayer(0.3, max_dense=0), make(dim=dim, distance=distance), 0.3)


@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("max_dense", [0, 5000])
def test_symmetric_binary_head(dim, max_dense):
    case = make(classes=2, dim=dim)
    assert case[0].heads["classifier"].basis is not None
    agree(ExactLastLayer(0.01, max_dense=max_dense), case, 0.01)


def test_symmetric_binary_head_equals_two_logits():
    """The same function told by (f, −f) and by two free logits has the same influences at the same damping."""
    symmetric = make(classes=2)
    free = make(classes=2, symmetric_binary_head=False)
    one, two = symmetric[0].heads["classifier"], free[0].heads["classifier"]
    with torch.no_grad():
        two.weight.copy_(one.basis @ one.weight)
        two.bias.copy_(one.basis[:, 0] * one.bias)
    again = Objective(symmetric[1].terms, symmetric[1].weights)
    (a,) = ExactLastLayer(0.02)(symmetric[0], symmetric[1], symmetric[2])
    (b,) = ExactLastLayer(0.02)(free[0], again, symmetric[2])
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_term_on_another_head_has_no_influence():
    network, objective, validation = make()
    from dataclasses import replace

    other = replace(objective.terms[1], head="rotation")
    both = Objective([*objective.terms, other], [*objective.weights, objective.weights[1]])
    first, second = ExactLastLayer(0.1)(network, both, validation)
    torch.testing.assert_close(first, ExactLastLayer(0.1)(network, objective, validation)[0])
    assert not second.any()


def test_indefinite_hessian_is_said():
    case = make(distance=ENTROPY, unlabeled=200, labeled=2)
    for max_dense in (0, 5000):
        with pytest.raises(UserError, match=r"influence\.damping.*raise the damping"):
            ExactLastLayer(1e-9, max_dense=max_dense)(*case)


def test_negative_damping():
    with pytest.raises(UserError, match=r"influence\.damping=-1"):
        ExactLastLayer(-1.0)


LARGE = """
import resource, torch
from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective

class Given(Backbone):
    feature_dim = 2048
    def forward(self, inputs):
        return inputs

torch.manual_seed(0)
network = Classifier(Given(), 1000)
def term(n, row=None):
    x = torch.randn(n, 2048).relu()
    target = torch.nn.functional.one_hot(torch.randint(1000, (n,)), 1000).float()
    return LossTerm("t", x, x, network(x).logits.detach(), target, CROSS_ENTROPY, torch.ones(n), row)
case = network, Objective([term(64), term(320, torch.arange(320))], [None, torch.ones(320)]), term(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(influence,) = ExactLastLayer(0.1)(*case)
assert influence.isfinite().all() and influence.std() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


def test_a_thousand_classes_of_two_thousand_features_fit_in_two_gibibytes():
    """Two million unknowns: their Hessian would take 17 TB."""
    out = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True).stdout
    assert float(out.split()[-1]) < 1.0  # GiB beyond the interpreter and the batch
