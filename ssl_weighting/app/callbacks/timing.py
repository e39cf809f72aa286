"""How long a run took, and where."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ssl_weighting import __version__
from ssl_weighting.files import whole_file


class Timing(Callback):
    """Writes ``timing.json`` with every checkpoint, so that both stand for the same steps.

    Entries: ``seconds``, of training with its evaluations, over all parts of a resumed run up to the last checkpoint;
    ``evaluation_seconds``, of these in evaluations; ``steps``; ``device``; ``processes``;
    ``precision``; ``torch`` and ``ssl_weighting``, versions.

    Args:
        directory: The run's folder.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "timing.json"
        self.seconds = self.evaluation_seconds = 0.0
        self._since = self._evaluating_since = 0.0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on from."""
        self._count()
        return {"seconds": self.seconds, "evaluation_seconds": self.evaluation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.seconds = float(state_dict["seconds"])
        self.evaluation_seconds = float(state_dict["evaluation_seconds"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An evaluation begins."""
        self._evaluating_since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is over."""
        if trainer.state.fn == "fit":
            self.evaluation_seconds += time.monotonic() - self._evaluating_since

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the file."""
        if not trainer.is_global_zero:
            return
        self._count()
        device = pl_module.device
        content = {
            "seconds": round(self.seconds, 3),
            "evaluation_seconds": round(self.evaluation_seconds, 3),
            "steps": trainer.global_step,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "torch": torch.__version__,
            "ssl_weighting": __version__,
        }
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _count(self) -> None:
        now = time.monotonic()
        if self._since:
            self.seconds += now - self._since
            self._since = now
