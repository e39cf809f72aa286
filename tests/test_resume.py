"""A run that is killed goes on exactly."""

import signal
import subprocess
import sys
import time

import torch
from command import words

from ssl_weighting.app.cli import main

OPTIONS = {
    "trainer.max_steps": 60,
    "trainer.val_check_interval": 20,
    "trainer.log_every_n_steps": 4,
    "trainer.accelerator": "cpu",
    "model.weighting.inner_steps": 3,
    "model.weighting.warmup_steps": 5,
    "model.weighting.update_masked": "true",
    "checkpoint.every_steps": 7,
    "data.unlabeled_batch_size": 16,
}


def start(runs, *more):
    options = words({"config": "digits_uda", "runs": runs} | OPTIONS)
    command = [sys.executable, "-m", "ssl_weighting", "fit", *options, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_sigkill(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "killed")

    def metrics():
        return "".join(path.read_text() for path in (tmp_path / "killed").glob("*/*/metrics.csv"))

    while "\n24," not in metrics():  # some Λ steps and checkpoints were made
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(tmp_path / "killed", "--ckpt_path", "last").wait() == 0
    (whole,), (killed,) = (list((tmp_path / name).glob("*/*")) for name in ("whole", "killed"))
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, killed)
    )
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), second[name].nan_to_num()), name
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()
    assert not list(killed.rglob("*.partial"))


def test_the_truncated_unroll_keeps_its_history(tmp_path):
    """Resumed between two Λ steps, the steps made before the checkpoint are still unrolled."""
    options = [
        *(
            "fit",
            "--config",
            "digits_uda",
            "--model.influence",
            "TruncatedUnroll",
            "--model.theta.schedule",
            "constant",
        ),
        *(
            "--model.weighting.inner_steps",
            "4",
            "--model.weighting.warmup_steps",
            "0",
            "--data.unlabeled_batch_size",
            "8",
        ),
        *(
            "--trainer.val_check_interval",
            "20",
            "--model.weighting.update_masked",
            "true",
            "--trainer.accelerator",
            "cpu",
        ),
        *("--data.labeled_batch_size", "8", "--model.backbone.channels", "[8,8]"),
    ]
    assert main([*options, "--runs", str(tmp_path / "whole"), "--trainer.max_steps", "8"]) == 0
    assert main([*options, "--runs", str(tmp_path / "resumed"), "--trainer.max_steps", "6"]) == 0
    resume = ["--ckpt_path", "last", "--trainer.max_steps", "8"]
    assert main([*options, "--runs", str(tmp_path / "resumed"), *resume]) == 0
    first, second = (
        torch.load(next((tmp_path / name).glob("*/*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert (first["weighting.weights.values"] != 1).any()
    assert torch.equal(first["weighting.weights.values"], second["weighting.weights.values"])
