"""Curvature products equal dense algebra and curvlinops, whole or in chunks, kept or rebuilt."""

import pytest
import torch
from torch import nn

from ssl_weighting.influence.curvature import CurvatureOperator
from ssl_weighting.influence.evaluation import batches_of, plain_evaluation
from ssl_weighting.influence.scope import scope_parameters
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective


def _operator(c, scope, curvature, chunk):
    parameters = scope_parameters(c.network, scope)
    batches = batches_of(c.objective, torch.float64)
    return CurvatureOperator(c.network, parameters, batches, curvature, 0.1, chunk)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("scope", ["last_block", "all"])
@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer"])
def test_products_equal_dense_matrices(case, kind, scope, curvature, chunk):
    c = case(kind)
    names = list(scope_parameters(c.network, scope))
    dense = c.gauss_newton(names) if curvature == "ggn" else c.hessian(names)
    torch.manual_seed(1)
    with plain_evaluation(c.network):
        operator = _operator(c, scope, curvature, chunk)
        for _ in range(2):
            v = torch.randn(len(dense), dtype=torch.float64)
            expected = dense @ v + 0.1 * v
            assert (operator(v) - expected).norm() <= 1e-10 * expected.norm()
        torch.testing.assert_close(
            operator.gradient(),
            torch.func.grad(lambda t: c.loss(names, t, c.objective))(c.flat(names)[1]),
            rtol=1e-9,
            atol=1e-11,
        )


def test_terms_of_equal_inputs_share_a_forward_pass(case):
    c = case("mlp")
    batches = batches_of(c.objective, torch.float64)
    assert sorted((b.head, len(b.inputs), len(b.pieces)) for b in batches) == [
        ("classifier", 12, 3),
        ("rotation", 4, 1),
    ]


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_curvlinops_agrees(curvature):
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.heads = model[:3], nn.ModuleDict({"classifier": model[3]})

        def forward(self, inputs, head="classifier"):
            features = self.backbone(inputs)
            return inputs, features, self.heads[head](features)

    x, labels = torch.randn(8, 2, 4, 4, dtype=torch.float64), torch.randint(4, (8,))
    target = nn.functional.one_hot(labels, 4).double()
    blank = torch.zeros(8, 4, dtype=torch.float64)
    objective = Objective(
        [LossTerm("s", x, blank, blank, target, CROSS_ENTROPY, torch.ones(8, dtype=torch.float64))], [None]
    )
    network = Network()
    parameters = scope_parameters(network, "all")
    kind = {"ggn": curvlinops.GGNLinearOperator, "hessian": curvlinops.HessianLinearOperator}[curvature]
    theirs = kind(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, labels)])
    ours = CurvatureOperator(network, parameters, batches_of(objective, torch.float64), curvature, 0.0)
    v = torch.randn(sum(p.numel() for p in parameters.values()), dtype=torch.float64)
    expected = theirs @ v
    assert (ours(v) - expected).norm() <= 1e-10 * expected.norm()
