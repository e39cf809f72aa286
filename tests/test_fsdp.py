"""θ divided among processes trains as θ held by each, and its checkpoints are everybody's. Two real processes, gloo."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from command import words

from ssl_weighting.app.cli import main

pytestmark = pytest.mark.slow

SHORT = {
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 12,
    "trainer.val_check_interval": 5,
    "trainer.log_every_n_steps": 3,
    "checkpoint.every_steps": 4,
    "model.weighting.inner_steps": 2,
    "model.weighting.warmup_steps": 2,
    "model.channels_last": "false",  # FSDP divides contiguous weights only, and the layout rounds otherwise
    "model.weighting.optimizer": "sgd",  # whose step is as exact as the influence
    "model.weighting.lr": 0.5,
    "model.weighting.update_masked": "true",
}


def fit(folder, recipe, strategy, *more, **options):
    """Two processes of a run in a folder; returns the folder of the run."""
    given = SHORT | {"runs": folder, "trainer.strategy": strategy, "trainer.devices": 2} | options
    command = [sys.executable, "-m", "ssl_weighting", "fit", "--config", recipe, *words(given), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = folder.glob("*/*")
    return run


def checkpoint(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_alike(one, other, tolerance):
    """Networks, average, Λ, record, and the optimiser's state."""
    assert one["state_dict"].keys() == other["state_dict"].keys()
    pairs = [(name, value, other["state_dict"][name]) for name, value in one["state_dict"].items()]
    (mine,), (theirs,) = one["optimizer_states"], other["optimizer_states"]
    assert [g["params"] for g in mine["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    for number, state in mine["state"].items():
        pairs += [(f"{number}.{key}", value, theirs["state"][number][key]) for key, value in state.items()]
    for name, value, expected in pairs:
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
            )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def whole(digits):
    return fit(digits / "fsdp", "digits_uda", "fsdp2")


def test_divided_is_as_held_by_each(digits, whole):
    held = fit(digits / "ddp", "digits_uda", "ddp")
    one, other = checkpoint(whole), checkpoint(held)
    assert (one["state_dict"]["weighting.weights.values"] != 1).sum() > 50
    assert_alike(one, other, 1e-4)


def test_a_resumed_run_is_the_run_left_alone(digits, whole):
    """From step 8, the checkpoint before the last."""
    expected, metrics = checkpoint(whole), (whole / "metrics.csv").read_bytes()
    assert checkpoint(whole, "previous")["global_step"] == 8
    again = digits / "again" / whole.relative_to(digits / "fsdp")
    shutil.copytree(whole, again)
    (again / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert fit(digits / "again", "digits_uda", "fsdp2", "--ckpt_path", "previous") == again
    found = checkpoint(again)
    assert found["global_step"] == 12
    assert_alike(found, expected, 0)
    assert (again / "metrics.csv").read_bytes() == metrics


def test_one_process_tests_and_goes_on_from_it(digits, whole, capfd):
    path = str(whole / "checkpoints" / "last.ckpt")
    assert main(["test", path]) == 0
    assert "test error" in capfd.readouterr().out
    more = words(SHORT | {"trainer.strategy": "auto", "trainer.devices": 1, "trainer.max_steps": 14})
    assert (
        main(["fit", "--config", "digits_uda", *more, "--runs", str(digits / "on"), "--ckpt_path", path]) == 0
    )


def test_texts_of_unequal_length_in_two_processes(tiny_bert, tiny_imdb, tmp_path, monkeypatch):
    """Each process has other lengths, and all must make the same passes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {
        "data.root": tiny_imdb,
        "data.labeled": "random",
        "model.backbone.name": tiny_bert,
        "data.labeled_batch_size": 4,
        "data.unlabeled_batch_size": 6,
        "data.validation_batch_size": 4,
        "data.num_validation": 10,
        "model.backbone.dropout": 0,
        "trainer.precision": "32-true",
    }
    divided = fit(tmp_path / "fsdp", "imdb_uda", "fsdp2", **options)
    held = fit(tmp_path / "ddp", "imdb_uda", "ddp", **options)
    assert_alike(checkpoint(divided), checkpoint(held), 1e-4)


@pytest.mark.parametrize(
    "options",
    [{"model.influence": "ConjugateGradient"}, {"model.compile": "true"}, {"model.nonfinite": "skip"}],
)
def test_what_needs_all_of_θ_is_refused(options, tmp_path, capfd):
    assert (
        main(["fit", "--config", "digits_uda", *words(SHORT | options), "--trainer.strategy", "fsdp2"]) == 2
    )
    said = capfd.readouterr().err
    (key,) = options
    assert f"{key}=" in said
    assert "Traceback" not in said
