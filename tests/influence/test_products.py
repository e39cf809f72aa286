"""Every engine gives the products of the serial one, for every layer type, in chunks of any size."""

import copy

import pytest
import torch
from modules import Doubled
from torch import nn

from ssl_weighting.errors import UserError
from ssl_weighting.influence.products import per_example_products
from ssl_weighting.influence.scope import scope_parameters
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm

KINDS = ["mlp", "conv", "transformer"]
SCOPES = ["last_layer", "last_block", "all", r"norm|stages\.0|weight$"]


def _direction(parameters):
    torch.manual_seed(7)
    return {n: torch.randn_like(p) for n, p in parameters.items()}


def _close(one, other, tolerance=1e-10):
    one, other = torch.cat(one), torch.cat(other)
    assert other.abs().max() > 0
    assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("engine", ["jvp", "activation", "vmap", "auto"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_equals_serial(case, kind, scope, engine):
    c = case(kind)
    parameters = scope_parameters(c.network, scope)
    direction = _direction(parameters)
    serial = per_example_products(c.network, parameters, c.objective.terms, direction, "serial")
    _close(per_example_products(c.network, parameters, c.objective.terms, direction, engine), serial)
    _close(per_example_products(c.network, parameters, c.objective.terms, direction, engine, 3), serial)


@pytest.mark.parametrize("kind", KINDS)
def test_serial_equals_the_dense_gradients_scaled_and_unmasked(case, kind):
    c = case(kind)
    parameters = scope_parameters(c.network, "all")
    direction = _direction(parameters)
    names, _ = c.flat()
    v = torch.cat([direction[n].reshape(-1) for n in names])
    expected = [c.gradients(names, term) @ v for term in c.objective.terms]
    _close(
        per_example_products(c.network, parameters, c.objective.terms, direction, "serial"), expected, 1e-12
    )


class _Net(nn.Module):
    """A classifier around any layers."""

    def __init__(self, *layers: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({"classifier": nn.Linear(features, 3)})

    def forward(self, inputs, head="classifier"):
        features = self.backbone(inputs)
        return inputs, features, self.heads[head](features)


class _Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


LAYERS = {
    "Linear": ([nn.Linear(6, 4)], (6,), 4),
    "Linear without bias, on sequences": ([nn.Linear(6, 4, bias=False)], (3, 6), 12),
    "Conv1d": ([nn.Conv1d(2, 4, 3, padding=1)], (2, 5), 20),
    "Conv2d, strided, grouped": (
        [nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, groups=2, padding=1)],
        (2, 6, 6),
        36,
    ),
    "Conv2d, dilated": ([nn.Conv2d(2, 3, 2, dilation=2, bias=False)], (2, 5, 5), 27),
    "Conv2d, padding by name and mode": (
        [nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect")],
        (2, 4, 4),
        32,
    ),
    "Conv3d": ([nn.Conv3d(1, 2, 2)], (1, 3, 3, 3), 16),
    "ConvTranspose2d": ([nn.ConvTranspose2d(2, 3, 2, 2)], (2, 3, 3), 108),
    "BatchNorm1d": ([nn.Linear(6, 4), nn.BatchNorm1d(4)], (6,), 4),
    "BatchNorm2d first, without affine after": (
        [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)],
        (2, 4, 4),
        12,
    ),
    "LayerNorm": ([nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh()], (6,), 4),
    "GroupNorm": ([nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)], (2, 4, 4), 16),
    "InstanceNorm2d": ([nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)], (2, 4, 4), 16),
    "RMSNorm": ([nn.Linear(6, 4), nn.RMSNorm(4)], (6,), 4),
    "Embedding": ([nn.Embedding(9, 4), nn.Linear(4, 2)], (3,), 6),
    "ReLU in place": (
        [nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.LeakyReLU(0.1, inplace=True)],
        (6,),
        4,
    ),
    "pooling": ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)], (2, 6, 6), 4),
    "dropout": ([nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 4)], (6,), 4),
    "MultiheadAttention": ([_Attention(4, 2, batch_first=True)], (3, 4), 12),
    "TransformerEncoderLayer": ([nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)], (3, 4), 12),
    "PReLU": ([nn.Linear(6, 4), nn.PReLU()], (6,), 4),
}
UNKNOWN_TO_ACTIVATION = ["MultiheadAttention", "TransformerEncoderLayer", "PReLU"]


def _of_layers(name):
    torch.manual_seed(3)
    layers, shape, features = LAYERS[name]
    net = _Net(*copy.deepcopy(layers), features=features).double().train()
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randint(9, (5, *shape)) if "Embedding" in name else torch.randn(5, *shape, dtype=torch.float64)
    target = torch.rand(5, 3, dtype=torch.float64).softmax(-1)
    blank = torch.zeros(5, 3, dtype=torch.float64)
    term = LossTerm("u", x, blank, blank, target, CROSS_ENTROPY, torch.ones(5), torch.arange(5))
    parameters = scope_parameters(net, "all")
    return net, parameters, term, _direction(parameters)


@pytest.mark.parametrize("engine", ["jvp", "activation", "vmap"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_type(name, engine):
    net, parameters, term, direction = _of_layers(name)
    serial = per_example_products(net, parameters, [term], direction, "serial")
    if engine == "activation" and name in UNKNOWN_TO_ACTIVATION:
        with pytest.raises(UserError, match=r"backbone\.\d.*(Attention|PReLU)"):
            per_example_products(net, parameters, [term], direction, engine)
        return
    _close(per_example_products(net, parameters, [term], direction, engine), serial)
    assert all(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


class _Custom(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


def test_auto_falls_back_where_there_is_no_forward_derivative():
    net, parameters, term, direction = _of_layers("Linear")
    net.backbone.append(_Custom())
    serial = per_example_products(net, parameters, [term], direction, "serial")
    with pytest.raises(UserError, match=r"engine='jvp'.*activation"):
        per_example_products(net, parameters, [term], direction, "jvp")
    _close(per_example_products(net, parameters, [term], direction, "auto"), serial)


def test_activation_refuses_parameters_used_behind_the_layers_back():
    net, parameters, term, direction = _of_layers("Linear")
    net.backbone[0].register_module("inner", nn.Linear(2, 2).double())
    parameters = scope_parameters(net, "all")
    direction = _direction(parameters)
    with pytest.raises(UserError, match=r"backbone\.0\.inner"):
        per_example_products(net, parameters, [term], direction, "activation")


def test_a_layer_used_twice_counts_twice():
    net, parameters, term, direction = _of_layers("Linear")
    square = nn.Linear(4, 4).double()
    net.backbone.insert(1, square)
    net.backbone.insert(2, square)
    parameters = scope_parameters(net, "all")
    direction = _direction(parameters)
    serial = per_example_products(net, parameters, [term], direction, "serial")
    for engine in ("jvp", "activation", "vmap"):
        _close(per_example_products(net, parameters, [term], direction, engine), serial)


def test_autocast_is_off_inside(case):
    c = case("conv")
    c.network.float()
    terms = [
        LossTerm(
            "u",
            c.objective.terms[1].inputs.float(),
            *(torch.zeros(7, 3),) * 2,
            torch.rand(7, 3),
            CROSS_ENTROPY,
            torch.ones(7),
        )
    ]
    parameters = scope_parameters(c.network, "all")
    direction = _direction(parameters)
    for engine in ("serial", "jvp", "activation", "vmap"):
        outside = per_example_products(c.network, parameters, terms, direction, engine)
        with torch.autocast("cpu", torch.bfloat16):
            _close(per_example_products(c.network, parameters, terms, direction, engine), outside, 1e-6)


def test_compiled_backbone(case):
    c = case("conv")
    parameters = scope_parameters(c.network, "all")
    direction = _direction(parameters)
    serial = per_example_products(c.network, parameters, c.objective.terms, direction, "serial")
    c.network.backbone.compile(backend="eager")
    with torch.no_grad():
        c.network(c.validation.inputs)
    for engine in ("jvp", "activation", "vmap", "serial"):
        _close(per_example_products(c.network, parameters, c.objective.terms, direction, engine), serial)


def test_compiled_by_wrapping(case):
    c = case("mlp")
    serial = per_example_products(
        c.network,
        parameters := scope_parameters(c.network, "all"),
        c.objective.terms,
        _direction(parameters),
        "serial",
    )
    c.network.backbone = torch.compile(c.network.backbone, backend="eager")
    parameters = scope_parameters(c.network, "all")
    assert any("_orig_mod" in name for name in parameters)
    for engine in ("jvp", "activation", "vmap"):
        _close(
            per_example_products(c.network, parameters, c.objective.terms, _direction(parameters), engine),
            serial,
        )


def test_batch_norm_buffers_and_modes_are_left_alone(case):
    c = case("conv")
    c.network.train()
    c.network.backbone.stages[0][1].eval()
    before = {n: b.clone() for n, b in c.network.named_buffers()}
    parameters = scope_parameters(c.network, "all")
    for engine in ("jvp", "activation", "vmap", "serial"):
        per_example_products(c.network, parameters, c.objective.terms, _direction(parameters), engine)
    assert c.network.training
    assert not c.network.backbone.stages[0][1].training
    assert all(torch.equal(b, before[n]) for n, b in c.network.named_buffers())


def test_a_relu_at_its_kink_has_slope_zero_in_every_engine():
    net, parameters, term, direction = _of_layers("ReLU in place")
    with torch.no_grad():
        net.backbone[0].weight.zero_()
        net.backbone[0].bias.zero_()
    serial = per_example_products(net, parameters, [term], direction, "serial")
    for engine in ("jvp", "activation", "vmap"):
        _close(per_example_products(net, parameters, [term], direction, engine), serial)


def test_unknown_engine_is_named():
    net, parameters, term, direction = _of_layers("Linear")
    with pytest.raises(UserError, match=r"influence\.engine='fast'"):
        per_example_products(net, parameters, [term], direction, "fast")
