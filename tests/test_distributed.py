"""Several processes do what one does. Real processes, over gloo; this file is also what each of them runs."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from modules import ssl_module

from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.data.synthetic import Synthetic
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.lissa import LiSSA
from ssl_weighting.influence.neumann import Neumann
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll

CASES = {
    # Several examples a feature, and fewer: the second is solved in the features' span.
    "exact": (lambda: ExactLastLayer(damping=0.1), {}, {}),
    "exact in the span": (lambda: ExactLastLayer(damping=0.1), {"hidden": (8, 200)}, {}),
    "exact, iterative": (lambda: ExactLastLayer(damping=0.1, max_dense=1), {}, {}),
    "conjugate gradients": (lambda: ConjugateGradient(scope="all", damping=0.1, tolerance=1e-12), {}, {}),
    "neumann": (lambda: Neumann(scope="all", damping=0.1, terms=5), {}, {}),
    "fisher": (lambda: Larsen("fisher", damping=0.1, scope="all"), {}, {}),
    "unroll": (lambda: TruncatedUnroll(steps=2, scope="all"), {}, {"theta_clip_norm": 1.0}),
    "lissa of everything": (lambda: LiSSA(scope="last_layer", damping=0.1, batch_size=10**6), {}, {}),
    "one weight": (lambda: ExactLastLayer(damping=0.1), {}, {"weighting_kind": "single"}),
    "memory": (lambda: ExactLastLayer(damping=0.1), {}, {}),
    "sharded": (lambda: ExactLastLayer(damping=0.1), {}, {"weighting_storage": "sharded"}),
    "sharded adam": (
        lambda: ExactLastLayer(damping=0.1),
        {},
        {"weighting_storage": "sharded", "weighting_optimizer": "adam"},
    ),
    "adam": (lambda: ExactLastLayer(damping=0.1), {}, {"weighting_optimizer": "adam"}),
    "disk": (lambda: ExactLastLayer(damping=0.1), {}, {"weighting_storage": "disk"}),
}


def train(case: str, world: int, folder: Path, precision: str = "64-true") -> Path:
    """Train a case, with a whole batch of 8 labelled and 32 unlabelled examples; returns the checkpoint."""
    influence, net, options = CASES[case]
    seed_everything(0, verbose=False)
    data = Synthetic(
        "moons",
        pool_size=97,  # no multiple of anything
        num_validation=24,
        labeled_batch_size=8 // world,
        unlabeled_batch_size=32 // world,
        validation_batch_size=24,
    )
    model = ssl_module(
        2,
        MLP(2, **({"hidden": (8, 8)} | net)),
        PseudoLabel(threshold=0.5, ramp=0.0),
        influence(),
        **({"weighting_inner_steps": 2, "symmetric_binary_head": False} | options),
    )
    trainer = bare_trainer(
        12,
        "cpu",
        strategy="ddp" if world > 1 else "auto",
        devices=world,
        precision=precision,
        default_root_dir=folder / case,
        limit_val_batches=None,
        val_check_interval=5,
        num_sanity_val_steps=0,
    )
    (folder / case).mkdir(parents=True, exist_ok=True)
    trainer.fit(model, data)
    torch.save(model.weighting.known(torch.arange(97)), folder / case / f"known{trainer.global_rank}.pt")
    if model.weighting.weights.file is None:
        trainer.save_checkpoint(folder / case / "end.ckpt")
    return folder / case


TWO = [case for case in CASES if case not in ("memory", "sharded", "sharded adam", "disk", "adam")]
FOUR = ["memory", "sharded", "disk", "adam", "sharded adam"]

pytestmark = pytest.mark.slow


def processes(world, folder, cases):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), port, folder, *cases],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * world, errors
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes(2, tmp_path_factory.mktemp("two"), TWO)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return processes(4, tmp_path_factory.mktemp("four"), FOUR)


def state(folder):
    return torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("case", TWO)
def test_two_processes_with_half_the_batch_are_one_with_the_whole(case, two, tmp_path):
    alone, together = state(train(case, 1, tmp_path)), state(two / case)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-12, equal_nan=True, msg=name)
    assert (alone["weighting.weights.values"] - 1).abs().max() > 0.01
    assert (alone["weighting.stats.pseudo_label"] >= 0).any()
    known = [torch.load(two / case / f"known{rank}.pt", weights_only=False) for rank in range(2)]
    assert torch.equal(known[0][0], known[1][0])


@pytest.mark.parametrize(
    ("case", "reference"), [("sharded", "memory"), ("disk", "memory"), ("sharded adam", "adam")]
)
def test_where_weights_are_kept_changes_no_bit(case, reference, four):
    expected, expected_record = torch.load(four / reference / "known0.pt", weights_only=False)
    assert (expected != 1).sum() > 50
    for rank in range(4):
        weights, record = torch.load(four / case / f"known{rank}.pt", weights_only=False)
        assert torch.equal(weights, expected)
        for one, other in zip(record, expected_record, strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_checkpoint_is_the_same_however_the_weights_are_kept(four):
    memory, sharded = state(four / "memory"), state(four / "sharded")
    assert memory["weighting.weights._extra_state"] == sharded["weighting.weights._extra_state"]
    assert memory["weighting.weights.moments"].any()
    for name, value in memory.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), sharded[name].nan_to_num()), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank, world, port, folder, *cases = sys.argv[1:]
    os.environ |= {
        "LOCAL_RANK": rank,
        "NODE_RANK": "0",
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for case in cases:
        train(case, int(world), Path(folder), "32-true" if int(world) == 4 else "64-true")
