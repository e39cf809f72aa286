"""Which parameters a scope selects."""

import pytest
import torch
from torch import nn

from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.errors import UserError
from ssl_weighting.influence.scope import last_block_pattern, scope_parameters


def test_presets_on_a_wide_resnet():
    network = Classifier(WideResNet(10, 1), 10, extra_heads={"rotation": 4})
    everything = [n for n, _ in network.named_parameters()]
    assert list(scope_parameters(network, "all")) == everything
    assert list(scope_parameters(network, "last_layer")) == [
        "heads.classifier.weight",
        "heads.classifier.bias",
    ]
    block = list(scope_parameters(network, "last_block"))
    assert {n.rpartition(".")[0] for n in block} == {
        "backbone.groups.2.0.norm1",
        "backbone.groups.2.0.norm2",
        "backbone.groups.2.0.conv1.0",
        "backbone.groups.2.0.conv2",
        "backbone.groups.2.0.shortcut",
        "backbone.norm",
        "heads.classifier",
    }
    assert list(scope_parameters(network, "stem")) == ["backbone.stem.weight", "backbone.stem.bias"]


def test_a_backbone_that_does_not_name_its_last_block():
    network = nn.Module()
    network.backbone = nn.Module()
    network.backbone.first = nn.Linear(2, 2)
    network.backbone.layers = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.ReLU()])
    network.backbone.last = nn.LayerNorm(2)
    network.heads = nn.ModuleDict({"classifier": nn.Linear(2, 2)})
    assert {n.rpartition(".")[0] for n in scope_parameters(network, "last_block")} == {
        "backbone.layers.1.0",
        "backbone.last",
        "heads.classifier",
    }


def test_frozen_parameters_are_left_out():
    network = Classifier(WideResNet(10, 1), 10)
    network.backbone.stem.requires_grad_(False)
    assert not any("stem" in n for n in scope_parameters(network, "all"))
    with pytest.raises(UserError, match=r"influence\.scope='stem'"):
        scope_parameters(network, "stem")


def test_names_are_told_without_what_compiling_adds():
    network = Classifier(WideResNet(10, 1), 10)
    plain = list(scope_parameters(network, "last_block"))
    network.backbone = torch.compile(network.backbone, backend="eager")
    compiled = list(scope_parameters(network, "last_block"))
    assert [n.replace("_orig_mod.", "") for n in compiled] == plain
    assert last_block_pattern(network).startswith("backbone")
