"""The trainer's loop and nothing around it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


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
