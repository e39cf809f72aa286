"""A run's precision: what the machine does fast, said; what would spoil the weights, refused."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from modules import ssl_module

from ssl_weighting import precision
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.app.cli import main
from ssl_weighting.app.init import timing
from ssl_weighting.app.init.choice import Choice
from ssl_weighting.app.recipes import recipe_folder
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.precision import has_bfloat16, settled_precision


@pytest.mark.parametrize("fast", [False, True])
def test_auto_takes_what_is_fast_and_says_so(fast, monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: fast)
    assert settled_precision("auto", "cpu") == ("bf16-mixed" if fast else "32-true")
    said = capsys.readouterr().out
    assert said.startswith(f"trainer.precision: {'bf16-mixed' if fast else '32-true'}, for this CPU")


def test_a_gpu_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert settled_precision("auto", "auto") == "bf16-mixed"
    monkeypatch.setattr(precision, "BFLOAT16_UNITS", set())
    assert settled_precision("auto", "cpu") == "32-true"


def test_units_of_this_machine():
    flags = open("/proc/cpuinfo").read() if precision.Path("/proc/cpuinfo").is_file() else ""  # noqa: SIM115
    assert has_bfloat16("cpu") == any(f" {unit}" in flags for unit in precision.BFLOAT16_UNITS)
    assert not has_bfloat16("mps")


def test_what_will_be_slow_is_said_once_and_kept(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.warns(DataWarning, match=r"bf16-mixed: this CPU has no bfloat16 units.*precision auto"):
        assert settled_precision("bf16-mixed", "cpu") == "bf16-mixed"


@pytest.mark.parametrize("given", ["16-mixed", "16-true", "bf16-true", "transformer-engine", "int8"])
def test_precisions_that_spoil_the_weights(given):
    with pytest.raises(UserError, match=rf"trainer\.precision={given}: .*use .*bf16-mixed"):
        settled_precision(given, "cpu")


@pytest.mark.parametrize("given", [None, 32, "32-true", 64, "64-true"])
def test_others_are_taken_as_they_are(given):
    assert settled_precision(given, "cpu") == given


def test_recipes_leave_it_to_the_machine():
    for path in recipe_folder().glob("*.yaml"):
        assert "bf16" not in path.read_text().replace("# bf16-mixed where", ""), path


def test_what_was_settled_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    short = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
    given = ["--config", "digits_uda", "--runs", str(tmp_path), "--trainer.precision", "auto", *short]
    assert main(["fit", *given]) == 0
    assert "trainer.precision: 32-true" in capsys.readouterr().out
    (config,) = tmp_path.glob("*/*/config.yaml")
    assert "precision: 32-true" in config.read_text()


def test_init_leaves_it_to_the_machine_and_times_what_will_run(monkeypatch):
    ran_in = []

    class Network(torch.nn.Linear):
        def forward(self, x):
            ran_in.append((y := super().forward(x)).dtype)
            return y

    for fast in (False, True):
        monkeypatch.setattr(timing, "has_bfloat16", lambda device, fast=fast: fast)
        timing.choose_steps(Choice({}), Network(3, 2), torch.randn(4, 3), "cpu")
    assert set(ran_in[:3]) == {torch.float32}
    assert set(ran_in[3:]) == {torch.bfloat16}


def test_in_bfloat16_what_adds_up_over_the_steps_is_kept_in_float32():
    """Of 8 bits, a step of a thousandth of a number is lost."""
    seed_everything(0, verbose=False)
    data = Digits(
        num_labeled=20, num_validation=20, labeled_batch_size=4, unlabeled_batch_size=16, split_seed=0
    )
    module = ssl_module(
        10,
        SmallConvNet(1, (8, 8)),
        PseudoLabel(threshold=0.1),
        weighting_inner_steps=1,
        weighting_lr=1e-3,
        weighting_optimizer="sgd",
        weighting_update_masked=True,
        theta_optimizer=partial(torch.optim.SGD, lr=0.03),
        theta_ema_decay=0.999,
    )
    before = {name: p.clone() for name, p in module.ema.model.named_parameters()}
    trainer = Trainer(
        max_steps=5, max_epochs=-1, accelerator="cpu", precision="bf16-mixed", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    assert {x.dtype for x in module.state_dict().values() if isinstance(x, torch.Tensor)} <= {
        torch.float32, torch.int64, torch.int32,
    }  # fmt: skip
    moved = [(p != before[name]).float().mean() for name, p in module.ema.model.named_parameters()]
    assert min(moved) > 0.5, "the average stands still"
    assert len(module.weighting.weights.values.unique()) > 25
