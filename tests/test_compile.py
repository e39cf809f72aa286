"""`model.compile` and `model.target_pass`: what changes in a run, and what must not."""

import shutil
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from modules import digits, ssl_module
from torch import nn

from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.errors import UserError
from ssl_weighting.influence.identity import Identity


@pytest.fixture
def calls(monkeypatch):
    """How often compiled code ran; the graphs are run as they are, which needs no C++ compiler."""
    seen = []

    def backend(graph, inputs):
        def run(*arguments):
            seen.append(torch.is_grad_enabled())
            return graph.forward(*arguments)

        return run

    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend=backend))
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


class Saves(Callback):
    """A checkpoint after the second step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def same(one, other):
    """Networks, their averages and weights, to the last digits."""
    there = other.state_dict()
    assert list(there) == list(one.state_dict())
    for name, value in one.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(there[name], value, rtol=1e-6, atol=1e-8, equal_nan=True, msg=name)


def trained(steps=4, checkpoint=None, callbacks=(), **options):
    seed_everything(0, verbose=False)
    model = ssl_module(
        10,
        WideResNet(10, 1, in_channels=1),
        options.pop("algorithm", None) or UDA(),
        **({"weighting_inner_steps": 2, "weighting_update_masked": True} | options),
    ).double()
    trainer = bare_trainer(steps, "cpu", *callbacks)
    data = digits(labeled_batch_size=4, unlabeled_batch_size=6, validation_batch_size=10)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model


def test_compiled_steps_are_the_same(calls):
    eager = trained()
    assert not calls
    compiled = trained(compile=True)
    assert len(calls) == 4  # the θ steps; not the two Λ steps
    assert all(calls)
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in eager.named_parameters()]
    assert (compiled.weighting.weights.values != 1).any()
    same(eager, compiled)


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_goes_over_to_the_other(first, calls, tmp_path):
    whole = trained(compile=first, callbacks=[Saves(tmp_path / "c.ckpt")])
    assert not any("_orig_mod" in name for name in torch.load(tmp_path / "c.ckpt")["state_dict"])
    same(whole, trained(checkpoint=tmp_path / "c.ckpt", compile=not first))


@pytest.mark.parametrize("engine", ["jvp", "activation"])
def test_the_whole_networks_influence_runs_beside_compiled_steps(engine, calls):
    influence = partial(Identity, scope="all", engine=engine)
    eager = trained(2, influence=influence())
    compiled = trained(2, influence=influence(), compile=True)
    assert len(calls) == 2
    assert (compiled.weighting.weights.values != 1).any()
    torch.testing.assert_close(compiled.weighting.weights.values, eager.weighting.weights.values)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_generated_code_agrees():
    eager = trained(3)
    compiled = trained(3, compile=True)
    same(eager, compiled)


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"model\.compile=true: needs a C\+\+ compiler"):
        trained(1, compile=True)


def test_targets_apart_have_statistics_of_their_own_and_no_gradient():
    torch.manual_seed(0)
    network = Classifier(WideResNet(10, 1), 10, targets_apart=True).double()
    known, weak, strong = (torch.randn(n, 3, 8, 8, dtype=torch.float64) for n in (3, 4, 4))
    outputs = network.joint(known, weak, strong, constant=(1,))
    assert [output.logits.requires_grad for output in outputs] == [True, False, True]
    network.targets_apart = False
    together = network.joint(known, strong)
    torch.testing.assert_close(outputs[0].logits, together[0].logits)
    torch.testing.assert_close(outputs[2].logits, together[1].logits)
    torch.testing.assert_close(outputs[1].logits, network(weak).logits)
    joint = network.joint(known, weak, strong, constant=(1,))
    assert all(output.logits.requires_grad for output in joint)
    assert not torch.allclose(joint[1].logits, outputs[1].logits)
    network.eval().targets_apart = True
    apart = network.joint(known, weak, strong, constant=(1,))
    network.targets_apart = False
    for one, other in zip(apart, network.joint(known, weak, strong), strict=True):
        torch.testing.assert_close(one.logits, other.logits)


@pytest.mark.parametrize("targets_apart", [False, True])
def test_further_heads_read_the_features_of_the_same_pass(targets_apart):
    network = Classifier(MLP(6, (5,)), 3, extra_heads={"more": 7}, targets_apart=targets_apart)
    batches = [torch.randn(n, 6) for n in (2, 3, 4)]
    for batch, output in zip(batches, network.joint(*batches, constant=(1,), further=("more",)), strict=True):
        found = output.of("more")
        torch.testing.assert_close(found.logits, network(batch, "more").logits)
        torch.testing.assert_close(found.features, output.features)
        assert found.logits.requires_grad == output.logits.requires_grad


def test_a_run_with_targets_apart_learns_weights():
    model = trained(4, algorithm=FixMatch(threshold=0.0), target_pass="apart")
    assert model.model.targets_apart
    assert (model.weighting.weights.values != 1).any()
    assert all(p.isfinite().all() for p in model.model.parameters())
