"""A BERT's influences, in float64: through its head, and by forward mode through all of it, against serial ones."""

import pytest
import torch

from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.products import per_example_products
from ssl_weighting.influence.scope import scope_parameters
from ssl_weighting.terms import CROSS_ENTROPY, KL_DIVERGENCE, LossTerm, Objective


def tokens(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 100, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=[2, 3])
def problem(request, tiny_bert):
    """A classifier, its training objective and its validation term; texts of unequal lengths."""
    torch.manual_seed(0)
    network = Classifier(Transformer(str(tiny_bert)), request.param).double().eval()
    torch.nn.init.normal_(network.heads["classifier"].weight)

    def term(name, lengths, seed, distance=CROSS_ENTROPY, **more):
        batch = tokens(lengths, seed)
        with torch.no_grad():
            output = network(batch)
        target = torch.randn(output.logits.shape, dtype=torch.float64).softmax(-1)
        ones = torch.ones(len(lengths), dtype=torch.float64)
        return LossTerm(name, batch, output.features, output.logits, target, distance, ones, **more)

    objective = Objective(
        [
            term("supervised", [9, 3, 12, 5], 1),
            term("consistency", [20, 4, 7, 11, 2], 2, KL_DIVERGENCE, row=torch.arange(5), scale=1.5),
        ],
        [None, torch.rand(5, dtype=torch.float64) + 0.5],
    )
    return network, objective, term("validation", [6, 14, 8], 3)


def loss_of(network, objective):
    """The training loss from the inputs on, and its terms' losses by example."""
    total, each = 0.0, []
    for term, weights in zip(objective.terms, objective.weights, strict=True):
        losses = term.scale * term.distance.value(network(term.inputs).logits, term.target)
        each.append(losses)
        total = total + (losses if weights is None else weights * losses).mean()
    return total, each


def test_head_by_its_dense_hessian(problem):
    network, objective, validation = problem
    found = torch.cat(ExactLastLayer(damping=0.01)(network, objective, validation))
    head = network.heads["classifier"]
    parameters = [head.weight, head.bias]
    basis = 2 if head.weight.shape[0] == 1 else 1  # (f, −f): a damping of two free logits counts twice
    total, each = loss_of(network, objective)
    first = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters, create_graph=True)])
    hessian = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)])
            for x in first
        ]
    )
    goal = CROSS_ENTROPY.value(network(validation.inputs).logits, validation.target).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(goal, parameters)])
    v = torch.linalg.solve(hessian + 0.01 * basis * torch.eye(len(gradient)).double(), gradient)
    for u in range(5):
        own = torch.cat([g.flatten() for g in torch.autograd.grad(each[1][u], parameters, retain_graph=True)])
        assert found[u].item() == pytest.approx(-float(own @ v), rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("engine", ["jvp", "activation"])
@pytest.mark.parametrize("scope", ["all", "last_block"])
def test_encoder_by_forward_mode_and_by_layers(problem, scope, engine):
    """Forward mode along the validation gradient equals one backward pass an example."""
    network, objective, validation = problem
    parameters = scope_parameters(network, scope)
    named = dict(network.named_parameters())
    goal = CROSS_ENTROPY.value(network(validation.inputs).logits, validation.target).mean()
    gradient = torch.autograd.grad(goal, [named[name] for name in parameters])
    direction = dict(zip(parameters, gradient, strict=True))
    _, each = loss_of(network, objective)
    expected = [
        [
            sum((g * direction[n]).sum() for g, n in zip(own, parameters, strict=True))
            for own in (
                torch.autograd.grad(loss, [named[name] for name in parameters], retain_graph=True)
                for loss in losses
            )
        ]
        for losses in each
    ]
    expected = torch.cat([torch.stack(part) for part in expected])
    found = torch.cat(per_example_products(network, parameters, objective.terms, direction, engine))
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert network.backbone.regroups and not network.training
