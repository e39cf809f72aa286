"""What every backbone of the package promises. Backbones are found, not listed."""

import copy
import inspect
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

from ssl_weighting import backbones
from ssl_weighting.backbones import Backbone, Classifier
from ssl_weighting.influence.scope import scope_parameters


class Small(nn.Module):
    """A user's own network, with layers after its head."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1)
        )
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1)).log_softmax(-1)


# What a backbone needs so as to be small; those that are not named take the defaults.
ARGUMENTS = {
    "MLP": lambda: {"in_features": 3 * 32 * 32, "hidden": (8, 8)},
    "SmallConvNet": lambda: {"channels": (4, 8)},
    "WideResNet": lambda: {"depth": 10, "width": 1},
    "ModuleBackbone": lambda: {"module": Small(), "head": "fc"},
    "TorchvisionModel": lambda: {"name": "shufflenet_v2_x0_5"},
    "TimmModel": lambda: {"name": "test_resnet"},
    "Precomputed": lambda: {"feature_dim": 3 * 32 * 32},
}


def kinds():
    def below(cls):
        return {c for s in cls.__subclasses__() for c in {s} | below(s)}

    found = {c for c in below(Backbone) if c.__module__.startswith(backbones.__name__)}
    return sorted(found, key=lambda c: c.__name__)


# Transformer reads texts; both need files, and have tests of their own.
IMAGES = [c for c in kinds() if c.__name__ not in ("Transformer", "VisionTransformer")]
LEARNING = [c for c in IMAGES if c.__name__ != "Precomputed"]  # which has no parameters
every_backbone = pytest.mark.parametrize("kind", IMAGES, ids=lambda c: c.__name__)


def make(kind):
    if kind.__name__ == "TimmModel":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return kind(**ARGUMENTS.get(kind.__name__, dict)())


def images(n=4):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))


@every_backbone
def test_features_are_what_it_says(kind):
    backbone = make(kind).eval()
    features = backbone(images())
    assert features.shape == (4, backbone.feature_dim)
    assert features.isfinite().all()
    assert len(features.unique(dim=0)) == 4
    one_by_one = torch.cat([backbone(image[None]) for image in images()])
    assert torch.allclose(one_by_one, features, atol=1e-4)


@every_backbone
def test_it_can_be_copied_after_use_and_its_state_loaded(kind):
    """The moving average of θ is a copy, and a checkpoint holds its state."""
    backbone = make(kind).eval()
    before = backbone(images())
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.load_state_dict(backbone.state_dict())
    assert torch.equal(twin(images()), before)


@every_backbone
def test_every_parameter_learns(kind):
    network = Classifier(make(kind), 5).train()
    network(images()).logits.square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("kind", LEARNING, ids=lambda c: c.__name__)
def test_last_block_is_a_part_of_it(kind):
    network = Classifier(make(kind), 5)
    last, everything = (scope_parameters(network, scope) for scope in ("last_block", "all"))
    assert 0 < len(last) < len(everything)
    assert any(name.startswith("backbone.") for name in last)
    re.compile(network.backbone.last_block)


@every_backbone
def test_torch_func_goes_through_it(kind):
    """Influences of the whole network take forward-mode and per-example derivatives."""
    network = Classifier(make(kind), 5).double().eval()
    shown = images(3).double()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    tangents = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.abs().mean()
        for n, p in parameters.items()
    }

    def logits(step):
        moved = {name: p + step * tangents[name] for name, p in parameters.items()}
        return functional_call(network, moved, (shown,)).logits

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    _, forward = jvp(logits, (zero,), (one,))
    difference = (logits(1e-7) - logits(-1e-7)) / 2e-7
    assert torch.allclose(forward, difference, rtol=1e-3, atol=1e-4 * float(forward.abs().max()))
    single = vmap(lambda image: functional_call(network, parameters, (image[None],)).logits[0])(shown)
    assert torch.allclose(single, network(shown).logits)


@every_backbone
def test_public_text_says_what_it_is(kind):
    assert kind.__doc__
    assert inspect.signature(kind)
