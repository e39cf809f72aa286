"""Additions of low rank to an encoder's layers (LoRA)."""

import copy

import pytest
import torch
from lightning.pytorch import seed_everything
from modules import ssl_module

from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.backbones.vision_transformer import VisionTransformer
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.errors import UserError
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.scope import scope_parameters


@pytest.fixture(params=["bert", "dinov2", "clip", "dinov3"])
def make(request, tiny_bert, tiny_vision):
    pytest.importorskip("peft")

    def made(**options):
        torch.manual_seed(0)
        if request.param == "bert":
            return Transformer(str(tiny_bert), dropout=0.0, **options)
        return VisionTransformer(str(tiny_vision / request.param), **options)

    return made


def given(backbone):
    if isinstance(backbone, Transformer):
        ids = torch.randint(5, 90, (3, 6), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def learned(backbone):
    return {name for name, p in backbone.named_parameters() if p.requires_grad}


def test_it_starts_as_the_pretrained_network_and_trains_the_additions_alone(make):
    plain, lora = make().eval(), make(lora_rank=2).eval()
    x = given(plain)
    torch.testing.assert_close(lora(x), plain(x))
    assert learned(lora) and all("lora_" in name for name in learned(lora))
    count = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    assert count < sum(p.numel() for p in plain.parameters())
    network = Classifier(lora.train(), 3)
    network(x).logits.square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n, p in network.named_parameters() if not p.requires_grad and p.grad is not None]


def test_layers_that_are_kept_get_none(make):
    names = learned(make(lora_rank=2, frozen_layers=1))
    assert any(".1." in name for name in names) and not any(".0." in name for name in names)


def test_copies_state_and_the_last_block(make):
    lora = make(lora_rank=2)
    twin = copy.deepcopy(lora)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "lora_B" in name:
                p.normal_()
    x = given(lora)
    assert not torch.allclose(twin.eval()(x), lora.eval()(x))
    lora.load_state_dict(twin.state_dict())
    assert torch.equal(twin(x), lora(x))
    scope = set(scope_parameters(Classifier(lora, 3), "last_block"))
    assert any("lora_" in name for name in scope)


def test_what_cannot_be_is_refused(make):
    with pytest.raises(UserError, match=r"^model\.backbone\.lora_rank=0: must be at least 1"):
        make(lora_rank=0)
    with pytest.raises(UserError, match=r"^model\.backbone\.lora_rank=2: has no effect on a frozen encoder"):
        make(lora_rank=2, frozen=True, **({"pooling": "mean"} if isinstance(make(), Transformer) else {}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("influence", [ExactLastLayer, lambda: Identity(scope="last_block")])
def test_it_trains(tiny_vision, influence):
    pytest.importorskip("peft")
    seed_everything(0, verbose=False)
    labels = torch.arange(40) % 2
    labels[20:] = -1
    data = TensorData(
        torch.rand(40, 3, 32, 32), labels, num_validation=6, labeled_batch_size=4, unlabeled_batch_size=4,
        augmentations={"weak": RandomFlipCrop()},
    )  # fmt: skip
    backbone = VisionTransformer(str(tiny_vision / "dinov2"), lora_rank=2)
    before = copy.deepcopy(backbone.state_dict())
    module = ssl_module(2, backbone, PseudoLabel(threshold=0.0), influence(), weighting_inner_steps=1,
                        weighting_warmup_steps=0)  # fmt: skip
    bare_trainer(3, "cpu").fit(module, data)
    after = module.model.backbone.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved and all("lora_" in name for name in moved)
    assert (module.weighting.weights.values != 1).any()
