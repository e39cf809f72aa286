"""θ step of every method ÷ (forward + backward of the images that it must process).

    python benchmarks/theta_step.py [--labeled 8] [--unlabeled 24] [--steps 4] [--json FILE]

The step is the trainer's own: views, forward passes, losses, backward pass, optimiser, moving average, and
what the method does after it. The floor is the same network on ready-made random images, in the passes that
the method's equations need and no more. Both are timed in turn; the ratio is that of the medians. On a CPU,
time is the process's own in one thread, which other loads on the machine change little.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from ssl_weighting.algorithms import Algorithm
from ssl_weighting.algorithms.base import paused_statistics
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.augment import CTAugment, RandomFlipCrop
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.data.base import InMemory, SSLData
from ssl_weighting.module import SSLModule


class Passes(NamedTuple):
    """Forward passes by what follows them; each several numbers of images.

    Attributes:
        learn: A backward pass to θ.
        look: None: targets and probes.
        probe: A backward pass to the images (VAT).
    """

    learn: tuple[int, ...]
    look: tuple[int, ...] = ()
    probe: tuple[int, ...] = ()


METHODS: dict[str, tuple[Callable[[], Algorithm], Callable[[int, int], Passes]]] = {
    "supervised": (Supervised, lambda n, u: Passes((n,))),
    "pseudo_label": (PseudoLabel, lambda n, u: Passes((n, u))),
    "vat": (VAT, lambda n, u: Passes((n, u, u), probe=(u,))),
    "mean_teacher": (MeanTeacher, lambda n, u: Passes((n, u), look=(u,))),
    "mixmatch": (MixMatch, lambda n, u: Passes((n + 2 * u,), look=(2 * u,))),
    "remixmatch": (ReMixMatch, lambda n, u: Passes((n + 9 * u, u, u), look=(u, n))),
    "uda": (UDA, lambda n, u: Passes((n + 2 * u,))),
    "fixmatch": (FixMatch, lambda n, u: Passes((n + 2 * u,))),
    "fixmatch_cta": (lambda: FixMatch(strong=[CTAugment()]), lambda n, u: Passes((n + 2 * u,), look=(n,))),
    "flexmatch": (FlexMatch, lambda n, u: Passes((n + 2 * u,))),
    "freematch": (FreeMatch, lambda n, u: Passes((n + 2 * u,))),
    "softmatch": (SoftMatch, lambda n, u: Passes((n + 2 * u,))),
}


class RandomImages(SSLData):
    """Noise in the shape of CIFAR-10, 2,000 images."""

    name = "random"
    all_class_names = tuple("0123456789")
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=4)})
    mean = std = (0.5, 0.5, 0.5)

    def load(self, train: bool) -> InMemory:
        """Images uint8 (2000, 3, 32, 32) and labels int64 (2000,)."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2000, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return InMemory(images, torch.arange(2000) % 10)


class Stopwatch(Callback):
    """Times every training step, and the floor after it."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.steps: list[float] = []
        self.floors: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the watch."""
        self._began = _now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, and time the floor."""
        self.steps.append(_now() - self._began)
        net = copy.deepcopy(pl_module.model)
        images = {
            n: torch.randn(n, 3, 32, 32, device=pl_module.device).to(memory_format=torch.channels_last)
            for n in {n for kind in self.passes for n in kind}
        }
        began = _now()
        floor(net, self.passes, images)
        self.floors.append(_now() - began)


def floor(net: Any, passes: Passes, images: dict[int, torch.Tensor]) -> None:
    """The passes and nothing else; one backward pass for all that learn, as in a step."""
    with torch.no_grad():
        for n in passes.look:
            net(images[n])
    for n in passes.probe:
        inputs = images[n].clone().requires_grad_()
        torch.autograd.grad(net(inputs).logits.logsumexp(-1).sum(), inputs)
    with paused_statistics(net):
        torch.stack([net(images[n]).logits.logsumexp(-1).mean() for n in passes.learn]).sum().backward()


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, labeled: int, unlabeled: int, steps: int, depth: int, width: int) -> dict[str, Any]:
    """One method: seconds a step, seconds of its floor, and their ratio."""
    method, passes = METHODS[name]
    watch = Stopwatch(passes(labeled, unlabeled))
    seed_everything(0)
    module = SSLModule(10, WideResNet(depth, width), method(), weighting="fixed")
    data = RandomImages(
        num_labeled=100, num_validation=100, labeled_batch_size=labeled, unlabeled_batch_size=unlabeled
    )
    trainer = Trainer(
        max_steps=steps + 1,
        max_epochs=1,
        accelerator="auto",
        devices=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    step, ground = (
        statistics.median(watch.steps[1:]),
        statistics.median(watch.floors[1:]),
    )  # the first warms up
    return {
        "method": name,
        "images": {kind: sum(counts) for kind, counts in watch.passes._asdict().items()},
        "step_s": round(step, 4),
        "floor_s": round(ground, 4),
        "ratio": round(step / ground, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=list(METHODS), metavar="METHOD", help="default: all")
    parser.add_argument("--labeled", type=int, default=8)
    parser.add_argument("--unlabeled", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread"
    print(f"WRN-{options.depth}-{options.width}, {options.labeled}/{options.unlabeled} images, {device}")
    print(f"{'method':14s}{'step s':>9s}{'floor s':>9s}{'ratio':>7s}")
    results = []
    for name in options.methods:
        result = measure(
            name, options.labeled, options.unlabeled, options.steps, options.depth, options.width
        )
        results.append(result)
        print(f"{name:14s}{result['step_s']:9.3f}{result['floor_s']:9.3f}{result['ratio']:7.2f}", flush=True)
    if options.json:
        load = os.getloadavg()
        record = {
            "device": device,
            "torch": torch.__version__,
            "load_average": load,
            **vars(options),
            "results": results,
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
