"""What the steps of Algorithm 1 cost: a Λ step against a θ step, the input pipeline against a θ step, Λ against |U|.

UDA at the paper's batches (64 labelled, 320 unlabelled, 256 validation), Wide ResNet-28-2, on random images of
CIFAR-10's size, the real loop run by the real trainer.

    python benchmarks/steps.py [--steps 5] [--precision bf16-mixed] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import resource
import statistics
import time
import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.data.base import InMemory, SSLData
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.optim import MaskedAdam
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective
from ssl_weighting.weights import ExampleWeights


class RandomImages(SSLData):
    """50,000 images of noise in ten classes."""

    name = "random_images"
    all_class_names = tuple("0123456789")
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.augmentations = {"weak": RandomFlipCrop()}

    def load(self, train: bool) -> InMemory:
        """Noise."""
        n = 50_000 if train else 1_000
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return InMemory(images, torch.arange(n) % 10)


class TimedInfluence(ExactLastLayer):
    """The exact last layer, with a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def __call__(self, network: Any, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :class:`ExactLastLayer`."""
        start = time.perf_counter()
        influences = super().__call__(network, objective, validation)
        if influences[0].is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        return influences


class Timed(SSLModule):
    """The loop, with a clock on its parts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds: dict[str, list[float]] = {"theta": [], "lambda": [], "views": [], "fetch": []}
        self._ended = None

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _timed(self, name: str, function: Any, *arguments: Any) -> Any:
        start = self._clock()
        result = function(*arguments)
        self.seconds[name].append(self._clock() - start)
        return result

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """See :class:`SSLModule`."""
        if self._ended is not None:
            self.seconds["fetch"].append(self._clock() - self._ended)
        super().training_step(batch, batch_idx)
        self._ended = self._clock()

    def _theta_step(self, *arguments: Any) -> None:
        self.seconds["views"].append(0.0)
        self._timed("theta", super()._theta_step, *arguments)

    def _weight_step(self, *arguments: Any) -> None:
        self._timed("lambda", super()._weight_step, *arguments)

    def _shown(self, *arguments: Any) -> Any:
        start = self._clock()
        shown = super()._shown(*arguments)
        if len(self.seconds["views"]) > len(self.seconds["theta"]):  # inside a θ step
            self.seconds["views"][-1] = self._clock() - start
        return shown


def steps(count: int, precision: str) -> dict[str, float]:
    """Medians over ``count`` θ steps, each followed by a Λ step; the first two are not counted."""
    seed_everything(0)
    model = Timed(10, WideResNet(), UDA(), TimedInfluence(), inner_steps=1)
    trainer = Trainer(
        max_steps=count + 2,
        max_epochs=-1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
    )
    trainer.fit(model, RandomImages())
    assert isinstance(model.influence, TimedInfluence)
    model.seconds["algebra"] = model.influence.seconds
    medians = {name: statistics.median(values[2:]) for name, values in model.seconds.items()}
    theta = medians["theta"]
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "theta_step_seconds": theta,
        "lambda_step_seconds": medians["lambda"],
        "lambda_over_theta": medians["lambda"] / theta,
        "influence_algebra_seconds": medians["algebra"],
        "wait_seconds": medians["views"] + medians["fetch"],
        "wait_over_theta": (medians["views"] + medians["fetch"]) / theta,
        "images_per_second": (64 + 2 * 320) / theta,
        "peak_bytes": peak,
    }


def lambda_part(sizes: tuple[int, ...] = (10**5, 10**8), rounds: int = 300) -> dict[str, float]:
    """Λ's own part of a Λ step (gather, influence algebra, M-Adam) and the update alone, for several |U|."""
    torch.manual_seed(0)
    network = Classifier(WideResNet(), 10)

    def term(n: int, index: Tensor | None = None) -> LossTerm:
        features = torch.randn(n, 128).relu()
        logits = network.heads["classifier"](features).detach()
        return LossTerm(
            "t",
            None,
            features,
            logits,
            torch.eye(10)[torch.arange(n) % 10],
            CROSS_ENTROPY,
            torch.ones(n),
            index,
        )

    known, validation, solver = term(64), term(256), ExactLastLayer()
    weights = {n: ExampleWeights(n, partial(MaskedAdam)) for n in sizes}
    for w in weights.values():  # touch all memory once, so that page faults are not counted
        w.step(torch.tensor([0]), torch.tensor([1.0]))
        state = w._current_optimizer().state[w.values]["moments"]
        state.fill_(0.0)
        w.values.fill_(1.0)
    update: dict[int, list[float]] = {n: [] for n in sizes}
    whole: dict[int, list[float]] = {n: [] for n in sizes}
    for number in range(rounds):
        for n in sizes:
            index = torch.randint(0, n, (320,))
            gradient = torch.randn(320)
            if number % 10 == 0:
                guessed = term(320, index)
                start = time.perf_counter()
                objective = Objective([known, guessed], [None, weights[n].gather(index)])
                weights[n].step(index, solver(network, objective, validation)[0])
                whole[n].append(time.perf_counter() - start)
            else:
                start = time.perf_counter()
                weights[n].gather(index)
                weights[n].step(index, gradient)
                update[n].append(time.perf_counter() - start)
    small, large = (statistics.median(whole[n]) for n in sizes)
    small_update, large_update = (statistics.median(update[n]) for n in sizes)
    return {
        "lambda_part_seconds_1e5": small,
        "lambda_part_seconds_1e8": large,
        "lambda_part_ratio": large / small,
        "update_alone_seconds_1e5": small_update,
        "update_alone_seconds_1e8": large_update,
        "update_alone_ratio": large_update / small_update,
    }


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "precision": options.precision,
    }
    result |= lambda_part()
    result |= steps(options.steps, options.precision)
    for name, value in result.items():
        print(f"{name:28s} {value:.6g}" if isinstance(value, float) else f"{name:28s} {value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
