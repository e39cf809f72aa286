"""Whole runs on texts: without a network, and resumed after a kill."""

import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from ssl_weighting.app.cli import main

SHORT = [
    *(
        "fit",
        "--config",
        "imdb_uda",
        "--trainer.max_steps",
        "6",
        "--model.weighting.inner_steps",
        "2",
        "--model.weighting.warmup_steps",
        "0",
    ),
    *(
        "--data.labeled",
        "random",
        "--data.num_labeled",
        "6",
        "--data.num_validation",
        "6",
        "--data.labeled_batch_size",
        "4",
    ),
    *("--data.unlabeled_batch_size", "6", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"),
]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Every connection fails, and the hub's caches are empty; the tries that failed."""
    tries = []

    def refuse(self, address, *_):
        tries.append(address)
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "datasets.config.HF_DATASETS_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    return tries


def local(tiny_bert, tiny_imdb, tmp_path):
    return [
        *(
            "--data.root",
            str(tiny_imdb),
            "--model.backbone.name",
            str(tiny_bert),
            "--runs",
            str(tmp_path / "runs"),
        ),
        *("--data.cache", str(tmp_path / "cache")),
    ]


def test_the_papers_recipe_needs_no_network(tiny_bert, tiny_imdb, tmp_path, no_network):
    assert main([*SHORT, *local(tiny_bert, tiny_imdb, tmp_path)]) == 0
    assert not no_network
    state = torch.load(next(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
    assert (state["weighting.weights.values"] != 1).any() and state[
        "weighting.weights.values"
    ].isfinite().all()


@pytest.mark.parametrize(
    ("left_out", "message"),
    [("--data.root", "data.root=null"), ("--model.backbone.name", "=bert-base-uncased")],
)
def test_with_neither_network_nor_files_it_says_so_in_a_line(
    tiny_bert, tiny_imdb, tmp_path, no_network, capfd, left_out, message
):
    options = local(tiny_bert, tiny_imdb, tmp_path)
    where = options.index(left_out)
    del options[where : where + 2]
    if left_out == "--model.backbone.name":
        options += ["--data.tokenizer", str(tiny_bert)]
    capfd.readouterr()
    assert main([*SHORT, *options]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], errors
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(tiny_bert, tiny_imdb, tmp_path):
    options = [
        *SHORT,
        *local(tiny_bert, tiny_imdb, tmp_path),
        "--trainer.max_steps",
        "40",
        "--checkpoint.every_steps",
        "3",
    ]

    def start(runs, *more):
        command = [sys.executable, "-m", "ssl_weighting", *options, "--runs", str(tmp_path / runs), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("killed")
    while "\n9," not in "".join(p.read_text() for p in (tmp_path / "killed").glob("*/*/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start("killed", "--ckpt_path", "last").wait() == 0
    first, second = (
        torch.load(next((tmp_path / runs).glob("*/*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for runs in ("whole", "killed")
    )
    assert (first["weighting.weights.values"] != 1).any()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), second[name].nan_to_num()), name
