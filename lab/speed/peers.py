"""FixMatch's training loop in the code of others, from a checkout that is given by its path.

Nothing of theirs is kept here. Their own loop runs, with their network, losses, optimiser, average and data path, on
images in memory in place of a download. What has to be lent:

- FixMatch-pytorch: its loop asks a loader's iterator for ``next()``, which torch has not had since 1.13; its
  optimiser's two groups are made here, for they are made in its ``main``.
- USB (semilearn): packages that its imports name and its FixMatch does not use are blank where they are missing. It
  knows GPUs only: on a CPU ``Tensor.cuda`` is the tensor itself, and its timer of CUDA events is left out.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from lab.speed.turns import Turns
from ssl_weighting.errors import UserError


class PeerTask(NamedTuple):
    """What a peer has to do.

    Attributes:
        path: Its checkout.
        labeled: Labelled images a step.
        unlabeled: Unlabelled images a step, a multiple of ``labeled``.
        depth: Of the Wide ResNet.
        width: Of the Wide ResNet.
        workers: Processes that make views.
        steps: Steps, at most.
    """

    path: str
    labeled: int
    unlabeled: int
    depth: int
    width: int
    workers: int
    steps: int


class Peer(NamedTuple):
    """Code that can be driven.

    Attributes:
        url: Where it is published.
        mark: A file by which its checkout is known.
        drive: Runs its loop until the turns are over.
    """

    url: str
    mark: str
    drive: Callable[[PeerTask, Turns], None]


class _Loader:
    """A loader without an end that tells where a step begins and when its data is there."""

    def __init__(self, loader: Iterable[Any], turns: Turns, first: bool) -> None:
        self._loader, self._turns, self._first = loader, turns, first
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> _Loader:
        return self

    def __next__(self) -> Any:
        if self._first:
            self._turns.step()
        if self._iterator is None:
            self._iterator = iter(self._loader)
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self._loader)
            batch = next(self._iterator)
        if not self._first:
            self._turns.arrived()
        return batch

    next = __next__


def _fixmatch_pytorch(task: PeerTask, turns: Turns) -> None:
    """``train.train`` of kekmodel/FixMatch-pytorch, as its ``main`` calls it."""
    sys.path.insert(0, task.path)
    train = importlib.import_module("train")
    arguments = Namespace(
        amp=False,
        world_size=1,
        local_rank=-1,
        device=turns.device,
        dataset="cifar10",
        num_classes=10,
        num_labeled=4000,
        expand_labels=False,
        batch_size=task.labeled,
        mu=task.unlabeled // task.labeled,
        num_workers=task.workers,
        start_epoch=0,
        epochs=1,
        eval_step=task.steps,
        total_steps=2**20,
        warmup=0,
        lr=0.03,
        wdecay=5e-4,
        use_ema=True,
        ema_decay=0.999,
        lambda_u=1,
        T=1,
        threshold=0.95,
        no_progress=True,
    )
    with _images_in_memory():
        sets = train.DATASET_GETTERS["cifar10"](arguments, "")
    loaders = [
        DataLoader(
            examples,
            sampler=RandomSampler(examples),
            batch_size=size,
            num_workers=task.workers,
            drop_last=True,
        )
        for examples, size in zip(sets[:2], (task.labeled, task.unlabeled), strict=True)
    ]
    model = importlib.import_module("models.wideresnet").build_wideresnet(task.depth, task.width, 0, 10)
    model.to(turns.device)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups["bias" not in name and "bn" not in name].append(parameter)
    optimizer = torch.optim.SGD(
        [
            {"params": groups[True], "weight_decay": arguments.wdecay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=arguments.lr,
        momentum=0.9,
        nesterov=True,
    )
    average = importlib.import_module("models.ema").ModelEMA(arguments, model, arguments.ema_decay)
    schedule = train.get_cosine_schedule_with_warmup(optimizer, arguments.warmup, arguments.total_steps)
    model.zero_grad()
    labeled, unlabeled = _Loader(loaders[0], turns, True), _Loader(loaders[1], turns, False)
    train.train(arguments, labeled, unlabeled, None, model, optimizer, average, schedule)


UNUSED_BY_USB = (
    *("aim", "wandb", "ruamel", "progress", "torchaudio", "skimage", "transformers", "timm"),
    *("sklearn", "tensorboard", "torch.utils.tensorboard"),
)


def _usb(task: PeerTask, turns: Turns) -> None:
    """``AlgorithmBase.train`` of microsoft/Semi-supervised-learning, with the settings of its FixMatch on CIFAR-10."""
    sys.path.insert(0, task.path)
    sys.meta_path.append(_Blanks(UNUSED_BY_USB))
    semilearn = importlib.import_module("semilearn")
    importlib.import_module("semilearn.algorithms.fixmatch.fixmatch")
    on_gpu = turns.device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch, _images_in_memory():
        where: Any = importlib.import_module("semilearn.datasets.utils")
        where.base_dir = scratch  # else its split is saved in the checkout
        arguments = semilearn.get_config(
            {
                "algorithm": "fixmatch",
                "save_dir": scratch,
                "dataset": "cifar10",
                "num_labels": 4000,
                "num_classes": 10,
                "batch_size": task.labeled,
                "uratio": task.unlabeled // task.labeled,
                "num_workers": task.workers,
                "epoch": 1,
                "num_train_iter": task.steps,
                "num_eval_iter": 2**20,
                "num_log_iter": 256,
                "amp": False,
                "clip_grad": 0.0,
                "distributed": False,
                "rank": 0,
                "gpu": 0 if on_gpu else None,
            }
        )
        network = importlib.import_module("semilearn.nets.wrn.wrn").WideResNet
        build = partial(network, first_stride=1, depth=task.depth, widen_factor=task.width)
        algorithm = semilearn.get_algorithm(arguments, build, None, None)
    algorithm.model.to(turns.device)
    algorithm.ema_model.to(turns.device)
    loaders = algorithm.loader_dict
    for name, first in (("train_lb", True), ("train_ulb", False)):
        loaders[name] = _Loader(loaders[name], turns, first)
    if on_gpu:
        algorithm.train()
        return
    algorithm._hooks = [hook for hook in algorithm._hooks if hook.name != "TimerHook"]
    del algorithm.hooks_dict["TimerHook"]
    with mock.patch.object(torch.Tensor, "cuda", lambda tensor, *arguments, **options: tensor):
        algorithm.train()


class _Blanks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules without content in place of those that are missing: their names are bound, and never used."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Any = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A blank for the packages named and what is below them; asked last, so only if nothing else was found."""
        if any(name == own or name.startswith(f"{own}.") for own in self._names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module in which every name is an empty class."""
        module = types.ModuleType(spec.name)
        module.__getattr__ = _empty_class  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to do."""


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


@contextmanager
def _images_in_memory() -> Iterator[None]:
    """Make CIFAR-10 of torchvision noise in memory, instead of a download."""
    from torchvision.datasets import CIFAR10

    def initialise(
        self: Any,
        root: Any,
        train: bool = True,
        transform: Any = None,
        target_transform: Any = None,
        **_: Any,
    ) -> None:
        draw, n = np.random.default_rng(0), 50_000 if train else 1_000
        self.data = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = (np.arange(n) % 10).tolist()
        self.transform, self.target_transform = transform, target_transform

    with mock.patch.object(CIFAR10, "__init__", initialise):
        yield


PEERS = {
    "FixMatch-pytorch": Peer("kekmodel/FixMatch-pytorch", "dataset/randaugment.py", _fixmatch_pytorch),
    "USB": Peer("microsoft/Semi-supervised-learning", "semilearn/core/algorithmbase.py", _usb),
}


def kind_of(path: Path) -> Peer:
    """Whose checkout a folder is.

    Raises:
        UserError: If it is none that can be driven.
    """
    for peer in PEERS.values():
        if (path / peer.mark).is_file():
            return peer
    known = " or ".join(peer.url for peer in PEERS.values())
    raise UserError(f"bench --peer: {path} is no checkout of {known}")
