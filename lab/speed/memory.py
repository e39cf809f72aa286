"""Whether memory stays flat: the trainer's loop for thousands of steps, a tiny network on noise.

UDA with a Λ step every 20 θ steps. Memory is looked at every 50 steps: resident, on a GPU what is allocated there. The
slope is that of a straight line through what was seen after the first 500 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lab.speed.loop import RandomImages, quiet
from lab.speed.timing import machine, resident
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting import WeightingOptions

EVERY, WARM = 50, 500


class _Watch(Callback):
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % EVERY == 0:
            on_gpu = pl_module.device.type == "cuda"
            self.seen[trainer.global_step] = torch.cuda.memory_allocated() if on_gpu else resident()


def main(argv: list[str]) -> int:
    """Run ``python -m lab bench memory`` with its options. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m lab bench memory", description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5000, help="θ steps, default 5000")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    parser.add_argument("--quick", action="store_true", help="700 steps")
    options = parser.parse_args(argv)
    steps = 700 if options.quick else options.steps
    if steps < WARM + 2 * EVERY:
        raise UserError(f"bench --steps={steps}: must be at least {WARM + 2 * EVERY}")
    result = {"machine": machine(options.device), **run(steps, options.device)}
    for name, value in result.items():
        print(f"{name:24s} {value:,.1f}" if isinstance(value, float) else f"{name:24s} {value}")
    if options.json:
        with whole_file(Path(options.json)) as file:
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def run(steps: int, device: str) -> dict[str, float]:
    """Train and watch.

    Args:
        steps: θ steps.
        device: Where.

    Returns:
        Bytes after 500 steps and at the end, and the slope in bytes a step.
    """
    quiet()
    seed_everything(0, verbose=False)
    watch = _Watch()
    data = RandomImages(labeled_batch_size=4, unlabeled_batch_size=8, validation_batch_size=8)
    module = SSLModule(10, WideResNet(10, 1), UDA(), weighting=WeightingOptions(inner_steps=20))
    bare_trainer(steps, device, watch).fit(module, data)
    warm = {step: held for step, held in watch.seen.items() if step >= WARM}
    slope = statistics.linear_regression(list(warm), list(warm.values())).slope
    return {
        "steps": steps,
        "bytes_after_500": warm[WARM],
        "bytes_at_the_end": list(warm.values())[-1],
        "bytes_a_step": slope,
    }
