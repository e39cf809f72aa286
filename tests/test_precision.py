"""A run's precision: what the machine does fast, said; what would spoil the weights, refused."""

import pytest
import torch

from ssl_weighting import precision
from ssl_weighting.cli import main
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.precision import has_bfloat16, settled_precision
from ssl_weighting.recipes import recipe_folder


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
    assert has_bfloat16("CPU") == any(f" {unit}" in flags for unit in precision.BFLOAT16_UNITS)
    assert not has_bfloat16("MPS device")


def test_what_will_be_slow_is_said_once_and_kept(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.warns(DataWarning, match=r"bf16-mixed: this CPU has no bfloat16 units.*precision auto"):
        assert settled_precision("bf16-mixed", "cpu") == "bf16-mixed"


@pytest.mark.parametrize("given", ["16-mixed", "16-true", "bf16-true"])
def test_precisions_that_spoil_the_weights(given):
    with pytest.raises(UserError, match=rf"trainer\.precision={given}: .*use bf16-mixed"):
        settled_precision(given, "cpu")


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
