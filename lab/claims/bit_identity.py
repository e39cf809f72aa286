"""Whether a change of the code changed a number: short runs, compared bit for bit with those of an earlier commit.

python -m lab.claims.bit_identity record FILE      fingerprints of every run, as this checkout computes them
python -m lab.claims.bit_identity compare FILE     the same, beside those of the file; status 1 if one differs

Both take --only WORD for the runs whose name holds it. Fingerprints are sha256 of θ, its average, Λ, Λ's moments, the
record of every example, θ's optimiser and all metrics in the order of their logging. They belong to one machine and one
version of torch, so both sides have to be made on the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lab.grouped import ssl_module
from ssl_weighting.algorithms import Algorithm
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence import ExactLastLayer, Influence
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.module import SSLModule

Case = dict[str, Any]


# ---- what follows the form of the code ----


def module(classes: int, case: Case) -> SSLModule:
    """The module of a run, from options by the names that :func:`cases` gives them."""
    options: Case = {
        "algorithm": UDA(threshold=0.3),
        "weighting_inner_steps": 2,
        "theta_ema_decay": 0.9,
        "weighting_lr": 0.05,
    }
    options |= {"influence": ExactLastLayer(damping=10.0)} | case
    return ssl_module(classes, SmallConvNet(3, (4, 6)), **options)


def state(trained: SSLModule) -> dict[str, list[Tensor]]:
    """All that a run leaves behind, in an order that does not follow names."""
    weighting = trained.weighting
    rows = torch.arange(weighting.size)
    weights, happened = weighting.known(rows)
    optimizer = trained.trainer.optimizers[0].state_dict()["state"]
    file = weighting.weights.file
    moments = weighting.weights.column("moments") if file is None else file.read(rows)
    return {
        "θ": [*trained.model.parameters(), *trained.model.buffers()],
        "average": [*trained.ema.parameters(), *trained.ema.buffers()],
        "method": list(trained.algorithm.buffers()),
        "Λ": [weights],
        "moments": [moments],
        "record": list(happened),
        "optimiser": [
            x for n in sorted(optimizer) for _, x in sorted(optimizer[n].items()) if isinstance(x, Tensor)
        ],
    }


def save(trainer: Trainer, trained: SSLModule, path: Path) -> None:
    """A checkpoint, and the rows on the disk that belong to it."""
    file = trained.weighting.weights.file
    if file is not None:
        file.journal(trainer.global_step)
    trainer.save_checkpoint(path)
    if file is not None:
        file.settle(trainer.global_step)


# ---- the runs ----


def subclasses(kind: type) -> list[type]:
    """The package's own plug-ins of a kind, by name."""
    below: set[type] = set()
    found: list[type] = type.__subclasses__(kind)
    for direct in found:
        below |= {direct, *subclasses(direct)}
    return sorted((c for c in below if not c.__abstractmethods__), key=lambda c: c.__name__)  # type: ignore[attr-defined]


def sure(method: type) -> Algorithm:
    """A method that takes most examples of an untrained network."""
    options = {"threshold": 0.3} if "threshold" in method.__init__.__code__.co_varnames else {}  # type: ignore[misc]
    made: Algorithm = method(**options)
    return made


def of_method(method: type) -> Case:
    """With a method."""
    return {"algorithm": sure(method)}


def of_solver(kind: type) -> Case:
    """With a solver, and as much damping as examples that disagree ask for."""
    options = {"damping": 10.0} if kind is ExactLastLayer else {}
    return {"influence": kind(**options)}


def cases() -> dict[str, Callable[[], Case]]:
    """Every run by its name: the arguments of :func:`run`."""
    found: dict[str, Callable[[], Case]] = {}
    for method in subclasses(Algorithm):
        found[f"method {method.__name__}"] = partial(of_method, method)
    for kind in subclasses(Influence):
        found[f"solver {kind.__name__}"] = partial(of_solver, kind)
    options: dict[str, Case] = {
        "two classes": {"classes": 2},
        "plain head": {"classes": 2, "symmetric_binary_head": False},
        "fixed": {"weighting_kind": "fixed"},
        "single": {"weighting_kind": "single"},
        "evidence": {"weighting_kind": "evidence"},
        "disk": {"weighting_storage": "disk"},
        "sharded": {"weighting_storage": "sharded"},
        "per_example": {"weighting_bias_correction": "per_example"},
        "sgd": {"weighting_optimizer": "sgd", "weighting_lr": 0.5},
        "adam": {"weighting_optimizer": "adam"},
        "bounds": {"weighting_bounds": (0.99, 1.005)},
        "init": {"weighting_init": 5.0},
        "update_masked": {"weighting_update_masked": True},
        "skip": {"nonfinite": "skip"},
        "batch statistics": {"weighting_batchnorm": "train"},
        "accumulate": {"theta_accumulate": 2, "theta_clip_norm": 1.0},
        "decay_all": {"theta_decay_all": True, "theta_schedule": "linear", "theta_lr_warmup_steps": 2},
        "no average": {"theta_ema_decay": 0.0},
        "apart": {"target_pass": "apart"},
        "contiguous": {"channels_last": False},
        "warm-up": {"weighting_warmup_steps": 3},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "64-true": {"precision": "64-true"},
    }
    for name, given in options.items():
        found[f"option {name}"] = partial(dict, given)
    found |= {
        "option labeled_augmentation": lambda: {"labeled_augmentation": [nn.Dropout(0.1)]},
        "option CTAugment": lambda: {"algorithm": FixMatch(threshold=0.3, strong=[CTAugment()])},
        "option annealing": lambda: {"algorithm": UDA(threshold=0.3, annealing="linear")},
        "option whole network": lambda: {"influence": ConjugateGradient(scope="all", damping=0.1)},
        "option activation": lambda: {"influence": Identity(scope="all", engine="activation")},
        "resume": lambda: {"stop_at": 6},
        "resume disk": lambda: {"stop_at": 6, "weighting_storage": "disk"},
        "resume unroll": lambda: {"stop_at": 6, "influence": TruncatedUnroll()},
    }
    for storage in ("memory", "sharded", "disk"):
        found[f"two processes {storage}"] = partial(dict, world=2, weighting_storage=storage)
        found[f"two processes evidence {storage}"] = partial(
            dict, world=2, weighting_storage=storage, weighting_kind="evidence"
        )
    found["two processes single"] = lambda: {"world": 2, "weighting_kind": "single"}
    return found


def images(classes: int, world: int) -> TensorData:
    """Ninety pictures of noise, brighter by class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % classes
    pictures = 120 * torch.rand(90, 3, 8, 8, generator=draw) + 50 * labels[:, None, None, None]
    return TensorData(
        pictures.to(torch.uint8), labels, num_labeled=12, num_validation=24, labeled_batch_size=6 // world,
        unlabeled_batch_size=8 // world, validation_batch_size=24 // world, mean=(0.5,) * 3, std=(0.5,) * 3,
        split_seed=0,
    )  # fmt: skip


class Log(Logger):
    """All numbers that a run logs, as they are."""

    name, version = "numbers", "0"

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note them."""
        self.numbers += [f"{step} {name} {float(value).hex()}" for name, value in sorted(metrics.items())]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""


def digest(values: list[Tensor]) -> str:
    """sha256 of tensors, shapes and dtypes included."""
    found = hashlib.sha256()
    for value in values:
        plain = value.detach().cpu().contiguous()
        found.update(f"{tuple(plain.shape)} {plain.dtype}".encode() + plain.view(torch.uint8).numpy().tobytes()
                     if plain.numel() and plain.dim() else f"{plain.dtype} {plain.tolist()}".encode())  # fmt: skip
    return found.hexdigest()[:16]


def run(folder: Path, case: Case, steps: int = 12) -> dict[str, str]:
    """Train twelve steps with a Λ step after every second one; returns the fingerprints."""
    case = dict(case)
    classes, world, stop_at = case.pop("classes", 3), case.pop("world", 1), case.pop("stop_at", None)
    precision = case.pop("precision", "32-true")
    log = Log()
    checkpoint = None
    for last in [stop_at, steps] if stop_at else [steps]:
        seed_everything(0, verbose=False)
        made = module(classes, dict(case))
        trainer = Trainer(
            max_steps=last, max_epochs=-1, accelerator="cpu", strategy="ddp" if world > 1 else "auto", devices=world,
            precision=precision, logger=log, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=1,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(made, images(classes, world), ckpt_path=checkpoint)
        if last != steps:
            checkpoint = folder / "part.ckpt"
            save(trainer, made, checkpoint)
    found = {name: digest(values) for name, values in state(made).items()}
    return found | {"metrics": hashlib.sha256("\n".join(log.numbers).encode()).hexdigest()[:16]}


def worker(name: str, folder: Path, rank: int, world: int, port: str) -> None:
    """One of several processes."""
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    (folder / f"{rank}.json").write_text(json.dumps(run(folder, cases()[name]())))


def several(name: str, world: int, folder: Path) -> dict[str, str]:
    """A run of several processes; the fingerprints of all of them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-m", "lab.claims.bit_identity", "worker", name, str(folder)]
    started = [
        subprocess.Popen([*command, str(rank), str(world), port], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    for process in started:
        _, error = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(error)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    return {f"{key} of {rank}": value for rank, one in enumerate(found) for key, value in one.items()}


def fingerprints(only: str) -> dict[str, dict[str, str]]:
    """Of every run whose name holds a word."""
    found = {}
    for name, case in cases().items():
        if only in name:
            with tempfile.TemporaryDirectory() as folder:
                given = case()
                made = (
                    several(name, given["world"], Path(folder))
                    if "world" in given
                    else run(Path(folder), given)
                )
            found[name] = made
            print(name, made.get("Λ", ""), flush=True)
    return found


def main() -> int:
    """See the head of this file."""
    if sys.argv[1:2] == ["worker"]:
        name, folder, rank, world, port = sys.argv[2:]
        worker(name, Path(folder), int(rank), int(world), port)
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    now = fingerprints(options.only)
    if options.action == "record":
        options.file.write_text(json.dumps({"torch": torch.__version__, "runs": now}, indent=1) + "\n")
        return 0
    before = json.loads(options.file.read_text())
    if before["torch"] != torch.__version__:
        warnings.warn(f"recorded with torch {before['torch']}, this is {torch.__version__}", stacklevel=1)
    different = []
    for name, found in now.items():
        for key, value in found.items():
            if before["runs"].get(name, {}).get(key) != value:
                different.append(f"{name}: {key}")
    print(
        f"{len(now)} runs, {sum(map(len, now.values()))} fingerprints, {len(different)} different",
        *different,
        sep="\n",
    )
    return 1 if different else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sys.exit(main())
