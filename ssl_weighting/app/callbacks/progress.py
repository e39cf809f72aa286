"""Progress while training: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


def progress_callback() -> Callback:
    """The display that suits where the output goes."""
    return Bar() if sys.stdout.isatty() else Lines()


def _newest(pl_module: LightningModule) -> dict[str, str]:
    latest: dict[str, float] = getattr(pl_module, "latest", {})
    metrics = {}
    if "train/loss" in latest:
        metrics["loss"] = f"{latest['train/loss']:.3f}"
    if "validation/error" in latest:
        metrics["val err"] = f"{100 * latest['validation/error']:.2f}%"
    if "weights/mean" in latest:
        metrics["λ mean/min/max"] = "/".join(f"{latest[f'weights/{k}']:.2f}" for k in ("mean", "min", "max"))
    return metrics


class Bar(RichProgressBar):
    """Lightning's bar with loss, validation error and the range of λ."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What is shown at the end of the bar."""
        return dict(_newest(pl_module))

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a run is one long epoch


class Lines(Callback):
    """One line every ``seconds`` of training, for logs and pipes."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._last = self._start = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last = self._start = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line when it is time."""
        now = time.monotonic()
        if trainer.is_global_zero and now - self._last >= self.seconds:
            self._last = now
            rate = (trainer.global_step - self._first_step) / (now - self._start)
            left = (trainer.max_steps - trainer.global_step) / max(rate, 1e-9)
            newest = "  ".join(f"{k} {v}" for k, v in _newest(pl_module).items())
            print(
                f"step {trainer.global_step}/{trainer.max_steps}  {rate:.2f} steps/s  "
                f"{int(left // 60)}m{int(left % 60):02d}s left  {newest}",
                flush=True,
            )
