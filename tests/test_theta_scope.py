"""What of the network is trained: all of it, its last block, its heads."""

import copy

import pytest
import torch

from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.digits import Digits
from ssl_weighting.errors import UserError
from ssl_weighting.module import SSLModule
from ssl_weighting.theta import ThetaOptions, keep_to_scope
from ssl_weighting.weighting import WeightingOptions


@pytest.mark.parametrize(
    ("scope", "moves"),
    [
        ("all", {"backbone.stages.0", "backbone.stages.1", "heads"}),
        ("last_block", {"backbone.stages.1", "heads"}),
        ("last_layer", {"heads"}),
        (r"stages\.0", {"backbone.stages.0", "heads"}),
    ],
)
def test_only_what_is_in_scope_moves(scope, moves):
    torch.manual_seed(0)
    module = SSLModule(
        10,
        SmallConvNet(in_channels=1, channels=(8, 8)),
        UDA(strong=["weak"]),
        weighting=WeightingOptions(inner_steps=2),
        theta=ThetaOptions(scope=scope),
    )
    before = copy.deepcopy(dict(module.model.named_parameters()))
    data = Digits(num_labeled=20, num_validation=20, labeled_batch_size=8, unlabeled_batch_size=16)
    bare_trainer(4, "cpu").fit(module, data)
    known = ("backbone.stages.0", "backbone.stages.1", "heads")
    moved = [n for n, p in module.model.named_parameters() if not torch.equal(p, before[n])]
    parts = {next((part for part in known if name.startswith(part)), name) for name in moved}
    assert parts == moves


def test_a_scope_that_names_nothing_is_refused():
    with pytest.raises(UserError, match=r"model\.theta\.scope='stage9': matches no"):
        SSLModule(10, SmallConvNet(in_channels=1), UDA(strong=["weak"]), theta=ThetaOptions(scope="stage9"))
    with pytest.raises(UserError, match=r"model\.theta\.scope"):
        ThetaOptions(scope="(")


def test_the_last_block_of_an_encoder(tiny_bert):
    network = torch.nn.Module()
    network.backbone = Transformer(str(tiny_bert), pooling="mean")
    network.heads = torch.nn.ModuleDict({"classifier": torch.nn.Linear(4, 2)})
    keep_to_scope(network, "last_block")
    trained = {n for n, p in network.backbone.named_parameters() if p.requires_grad}
    last = len(network.backbone.encoder.encoder.layer) - 1
    assert trained and all(f"layer.{last}." in name for name in trained)
