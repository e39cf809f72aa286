"""A frozen encoder's features: images a second beside the encoder's bare forward, and training on very many of them.

Both ways of embedding take turns, each round into a cache of its own. Training is that of a head with a Λ step every ten
θ steps; memory is the process's own (anonymous), not what the system keeps of files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lab.speed.loop import quiet
from lab.speed.timing import machine, own_memory
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.timm_model import TimmModel
from ssl_weighting.data.features import FeatureFile, FeatureTable
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.encoder import PLAIN, Encoder, FeatureOptions
from ssl_weighting.encoding import encode
from ssl_weighting.files import whole_file
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.views import Views
from ssl_weighting.weighting import WeightingOptions

BATCH, CHUNK = 64, 8192
CLASSES, LABELS = 10, 100


class Nothing(Backbone):
    """Stands for an encoder whose features are there already.

    Args:
        feature_dim: D.
    """

    frozen = True

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, inputs: Any) -> Tensor:
        """The inputs."""
        return torch.as_tensor(inputs)


class _Many:
    """A source of which only the features are ever looked at."""

    def __init__(self, count: int) -> None:
        self.labels = torch.full((count,), -1)
        self.labels[:LABELS] = torch.arange(LABELS) % CLASSES

    def fetch(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), 1)

    def checksum(self) -> str:
        return f"{len(self.labels)}"

    def describe(self, rows: Tensor) -> list[str]:
        return [f"row {row}" for row in rows.tolist()]


class ManyFeatures(SSLData):
    """Cached features of very many examples.

    Args:
        file: Where they lie.
    """

    name, all_class_names, has_test = "features", tuple(map(str, range(CLASSES))), False
    augmentations = {"weak": lambda inputs: inputs}  # noqa: RUF012

    def __init__(self, file: FeatureFile) -> None:
        self.file = file
        super().__init__(LABELS, 0, labeled_batch_size=64, unlabeled_batch_size=448, split_seed=0)

    def load(self, train: bool) -> _Many:
        """No inputs."""
        return _Many(self.file.shape[0])

    def setup(self, stage: str | None = None) -> None:
        """See :class:`~ssl_weighting.data.module.SSLData`."""
        super().setup(stage)
        for part in self.sets.values():
            part.features = FeatureTable({PLAIN: self.file})


class _Watch(Callback):
    """Seconds of θ steps with and without a Λ step, and memory."""

    def __init__(self, every: int) -> None:
        self.every, self.started = every, 0.0
        self.plain: list[float] = []
        self.with_weights: list[float] = []
        self.memory: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        due = trainer.global_step % self.every == 0
        (self.with_weights if due else self.plain).append(time.perf_counter() - self.started)
        if due:
            self.memory.append(own_memory())


def main(argv: list[str]) -> int:
    """Run ``python -m lab bench features`` with its options. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m lab bench features", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--encoder", help="a timm model's name or folder, default: resnet18 with random weights"
    )
    parser.add_argument("--images", type=int, default=512, help="images of 96 pixels a round, default 512")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, default 5")
    parser.add_argument(
        "--examples", type=int, default=1_000_000, help="cached examples to train on, default 10⁶"
    )
    parser.add_argument("--width", type=int, default=384, help="their features, default 384")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    parser.add_argument("--quick", action="store_true", help="64 images, one round, 10⁵ examples")
    options = parser.parse_args(argv)
    quiet()
    if options.quick:
        options.images, options.rounds, options.examples = 64, 1, 100_000
    result = {"machine": machine("cpu"), "encoder": Path(options.encoder or "resnet18").name}
    backbone = TimmModel(options.encoder or "resnet18", pretrained=options.encoder is not None, frozen=True)
    result |= embedding(backbone, options.images, options.rounds)
    result |= training(options.examples, options.width)
    for name, value in result.items():
        print(f"{name:34s} {value:,.4g}" if isinstance(value, float) else f"{name:34s} {value}")
    if options.json:
        with whole_file(Path(options.json)) as file:
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def embedding(backbone: Backbone, count: int, rounds: int) -> dict[str, Any]:
    """Images a second, embedded into a cache and through the bare encoder, in turn.

    Args:
        backbone: The encoder.
        count: Images of 96 pixels.
        rounds: How often.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=draw)
    labels = torch.full((count,), -1)
    labels[:8] = torch.arange(8) % 2
    data = TensorData(images, labels, num_validation=0, mean=(0.5,) * 3, std=(0.5,) * 3, split_seed=0)
    data.setup("fit")
    encoder = Encoder(backbone).to(memory_format=torch.channels_last)
    views = Views(data, Supervised(), torch.nn.ModuleList(), 2, encoder=encoder)
    ready = [views.shown(part, ()) for part in images.split(BATCH)]  # type: ignore[no-untyped-call]

    def bare() -> None:
        with torch.inference_mode():
            for batch in ready:
                encoder.backbone(batch)

    def cached() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for part in data.sets.values():
                part.features = None
            options = FeatureOptions(views=0, cache=Path(folder), batch_size=BATCH)
            encode(encoder, views, options, torch.device("cpu"), lambda: None)

    seconds: dict[str, list[float]] = {"bare": [], "cached": []}
    works: dict[str, Callable[[], None]] = {"bare": bare, "cached": cached}
    for name in works:  # warms up
        works[name]()
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    ratios = [one / other for one, other in zip(seconds["bare"], seconds["cached"], strict=True)]
    return {
        "images a second, bare forward": count / statistics.median(seconds["bare"]),
        "images a second, embedded": count / statistics.median(seconds["cached"]),
        "embedded ÷ bare, median": statistics.median(ratios),
    }


def training(count: int, width: int) -> dict[str, Any]:
    """Seconds of a θ step and of a Λ step on cached features, and how memory grows.

    Args:
        count: Examples.
        width: Features of each.
    """
    steps, every = 300, 10
    with tempfile.TemporaryDirectory() as folder:
        file, draw = FeatureFile(Path(folder) / "features", (count, 1, width)), np.random.default_rng(0)
        for rows in torch.arange(count).split(CHUNK):  # type: ignore[no-untyped-call]
            file.fill(rows, torch.from_numpy(draw.standard_normal((len(rows), 1, width), np.float32)))
        watch = _Watch(every)
        module = SSLModule(
            CLASSES,
            Nothing(width),
            PseudoLabel(threshold=0.0),
            ExactLastLayer(max_dense=6000),
            WeightingOptions(inner_steps=every),
            features=FeatureOptions(views=0),
        )
        bare_trainer(steps, "cpu", watch).fit(module, ManyFeatures(file))
    half = len(watch.memory) // 2
    return {
        "cached examples": count,
        "features of each": width,
        "seconds a θ step": statistics.median(watch.plain),
        "seconds a θ and a Λ step": statistics.median(watch.with_weights),
        "own memory, MB": watch.memory[-1] / 1e6,
        "growth over the last half, MB": (watch.memory[-1] - watch.memory[half]) / 1e6,
    }
