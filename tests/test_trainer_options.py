"""Options of Lightning's Trainer: what this loop does not honour, or Lightning would stumble over, is one line."""

import inspect

import pytest
from lightning.pytorch import Trainer

from ssl_weighting.app.cli import main
from ssl_weighting.app.run import TRAINER_DEFAULTS
from ssl_weighting.app.trainer_options import OPTIONS, check_trainer, refused
from ssl_weighting.errors import UserError

LIGHTNINGS = {
    name: p.default for name, p in inspect.signature(Trainer.__init__).parameters.items() if name != "self"
}
FINE = {**LIGHTNINGS, **TRAINER_DEFAULTS, "strategy": "auto", "accelerator": "auto", "devices": "auto"}

REFUSED = [
    ("accumulate_grad_batches", 2, "=2: not honoured here; give --model.theta.accumulate N"),
    ("gradient_clip_val", 1.0, "give --model.theta.clip_norm X"),
    ("fast_dev_run", True, "=true: not honoured here; give --trainer.max_steps 2"),
    ("fast_dev_run", 3, "=3: not honoured here"),
    ("overfit_batches", 1, "give --data.num_labeled"),
    ("barebones", True, "timing.json"),
    ("accelerator", "tpu", "=tpu: torch finds none in this machine"),
    ("accelerator", "gpuu", "did you mean gpu?"),
    ("devices", "0", "=0: must be a number above 0"),
    ("devices", 0, "must be a number above 0"),
    ("devices", "one", "must be a number above 0"),
    ("num_nodes", 0, "=0: must be at least 1"),
    ("check_val_every_n_epoch", 0, "must be at least 1"),
    ("val_check_interval", 0, "must be a whole number of θ steps above 0"),
    ("val_check_interval", 1.5, "must be a whole number of θ steps above 0"),
    ("val_check_interval", -1, "above 0"),
    ("max_time", "5", "must be days:hours:minutes:seconds"),
    ("profiler", "simpl", "did you mean simple?"),
    ("strategy", "deepspeed", "use ddp, or fsdp2"),
    ("callbacks", [{"class_path": "x.ModelCheckpoint"}], "enable_checkpointing true as well"),
    ("callbacks", [{"class_path": "x.StochasticWeightAveraging"}], "θ is averaged already"),
    ("plugins", [{"class_path": "x.MixedPrecision"}], "=MixedPrecision: not honoured here"),
]


@pytest.mark.parametrize(("name", "value", "expected"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused(name, value, expected):
    with pytest.raises(UserError) as fault:
        check_trainer({**FINE, name: value}, TRAINER_DEFAULTS)
    assert expected in str(fault.value)
    assert f"trainer.{name}" in str(fault.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("devices", value) for value in (1, 2, "2", "0,1", "0,", "[0]", "[0, 1]", [0], -1, "auto")),
        ("val_check_interval", 150),
        ("val_check_interval", 2.0),
        ("max_time", "00:12:00:00"),
        ("profiler", "simple"),
        ("accelerator", "cpu"),
    ],
)
def test_what_is_taken(name, value):
    check_trainer({**FINE, name: value}, TRAINER_DEFAULTS)


def test_a_share_of_a_pass_where_passes_count():
    check_trainer({**FINE, "check_val_every_n_epoch": 1, "val_check_interval": 0.5}, TRAINER_DEFAULTS)


def test_every_option_of_lightning_is_known():
    """A new one is decided on, not passed through unseen."""
    assert set(OPTIONS) == set(LIGHTNINGS)


LINES = {
    "--trainer.accelerator tpu": "trainer.accelerator=tpu: torch finds none",
    "--trainer.accumulate_grad_batches 2": "give --model.theta.accumulate N",
    "--trainer.gradient_clip_val 1.0": "give --model.theta.clip_norm X",
    "--trainer.fast_dev_run true": "trainer.fast_dev_run=true",
    "--trainer.logger MLFlowLogger": "trainer.logger: Requirement 'mlflow",
    "--trainer.logger WandbLogger --trainer.logger.project a/b": "trainer.logger: Invalid project name 'a/b'",
    "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor x --trainer.callbacks.mode up": (
        "trainer.callbacks: `mode` can be min, max, got up"
    ),
}


@pytest.mark.parametrize("typed", LINES)
def test_the_command_says_it_in_one_line(typed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["fit", "--config", "digits_uda", *typed.split()]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert LINES[typed] in lines[0]
    assert not list(tmp_path.glob("runs/*/*/config.yaml"))


def test_our_own_faults_are_not_taken_for_others():
    with pytest.raises(ValueError, match="a fault") as fault:
        raise ValueError("a fault of this program")
    assert refused(fault.value) is None
