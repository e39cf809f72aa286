"""A run that is killed goes on exactly."""

import signal
import subprocess
import sys
import time

import torch

OPTIONS = [
    *("fit", "--config", "digits_uda", "--trainer.max_steps", "60", "--trainer.val_check_interval", "20"),
    *("--model.inner_steps", "3", "--model.warmup_steps", "5", "--checkpoint.every_steps", "7"),
    *(
        "--data.unlabeled_batch_size",
        "16",
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "4",
    ),
]


def start(runs, *more):
    command = [sys.executable, "-m", "ssl_weighting", *OPTIONS, "--runs", str(runs), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_sigkill(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("*/*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
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
