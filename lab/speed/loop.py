"""The trainer's loop and nothing around it: what the benchmarks of whole steps train with."""

from __future__ import annotations

import logging
import warnings
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory


class RandomImages(SSLData):
    """Noise in the shape of CIFAR-10."""

    name = "random"
    all_class_names = tuple("0123456789")
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=4)})
    mean = std = (0.5, 0.5, 0.5)

    def load(self, train: bool) -> InMemory:
        """Images uint8 (50000, 3, 32, 32) and labels int64 (50000,)."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (50_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return InMemory(images, torch.arange(50_000) % 10)


def bare_trainer(steps: int, device: str, *callbacks: Callback, **options: Any) -> Trainer:
    """A trainer that makes θ and Λ steps and neither evaluates, nor logs, nor saves.

    Args:
        steps: θ steps, at most.
        device: Where, as PyTorch names it.
        callbacks: Who watches.
        options: What else is to be said to Lightning's Trainer, or said otherwise.
    """
    bare: dict[str, Any] = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": torch.device(device).type,
        "devices": 1,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "check_val_every_n_epoch": None,
        "use_distributed_sampler": False,
    }
    return Trainer(**(bare | options))


def quiet() -> None:
    """Silence what Lightning has to say: a benchmark's output is its table."""
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
