"""What a run leaves on disk while it trains: checkpoints, the split and the weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_weighting.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.data.split import write_split
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.module import SSLModule


class RunFiles(Callback):
    """Writes ``config.yaml``, ``split.json``, ``checkpoints/last.ckpt`` and ``weights.parquet`` into the run's folder.

    Args:
        every_minutes: Minutes between two checkpoints.
        every_steps: θ steps between two checkpoints, besides; ``null`` for none.
    """

    def __init__(self, every_minutes: float = 2.0, every_steps: int | None = None) -> None:
        if not every_minutes > 0:
            raise UserError(f"checkpoint.every_minutes={every_minutes}: must be above 0")
        if every_steps is not None and every_steps < 1:
            raise UserError(f"checkpoint.every_steps={every_steps}: must be at least 1, or null")
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self.directory: Path | None = None
        self.configuration = ""
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the split, and a first checkpoint so that the run can be resumed from here on."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.forget_after(trainer.global_step)
        self._save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint when it is time."""
        assert isinstance(pl_module, SSLModule)
        if (batch_idx + 1) % pl_module.accumulate:
            return
        due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        if trainer.world_size > 1:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due or (self.every_steps and trainer.global_step % self.every_steps == 0):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint."""
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        directory = self.directory
        if directory is None:
            return
        if trainer.is_global_zero:
            (directory / "checkpoints").mkdir(exist_ok=True)
            if not (directory / "config.yaml").exists():
                with whole_file(directory / "config.yaml") as partial:
                    partial.write_text(self.configuration, encoding="utf-8")
            if not (directory / "split.json").exists():
                write_split(pl_module.split(), directory / "split.json")
            with whole_file(directory / "checkpoints" / "last.ckpt") as partial:
                trainer.save_checkpoint(partial)
            with whole_file(directory / "weights.parquet") as partial:
                pq.write_table(weights_table(pl_module), partial)
        else:
            trainer.save_checkpoint(directory)  # takes part in gathering the state; writes nothing
        self._saved_at = time.monotonic()


def weights_table(module: SSLModule) -> pa.Table:
    """Λ as a table, a row an unlabelled example.

    Columns: ``index`` (row in the data set's training examples), ``weight``, ``updates``, ``influence`` (null before
    the first Λ step that saw it), ``pseudo_label`` and ``confidence`` (null before it was seen), ``label`` (null if
    unknown; counts through the class names, those that only the pool holds come last).
    """
    record = {k: v.cpu().numpy() for k, v in module.record.state_dict().items()}
    labels = module.unlabeled_labels().numpy()
    seen = record["pseudo_label"] >= 0
    return pa.table(
        {
            "index": module.split().unlabeled.numpy(),
            "weight": module.weights.values.detach().cpu().expand(module.weights.size).numpy(),
            "updates": record["updates"],
            "influence": pa.array(record["influence"], mask=np.isnan(record["influence"])),
            "pseudo_label": pa.array(record["pseudo_label"], mask=~seen),
            "confidence": pa.array(record["confidence"], mask=~seen),
            "label": pa.array(labels, mask=labels < 0),
        }
    )


def predictions_table(
    batches: Sequence[tuple[Tensor, Tensor]], rows: Tensor, class_names: Sequence[str]
) -> pa.Table:
    """Class probabilities as a table, a row an example.

    Columns: ``index`` (row in the data set), ``class`` (the likeliest, by name), ``probability_<name>`` for each.

    Args:
        batches: Positions (B,) and probabilities (B, C), a pair a batch.
        rows: (n,) int64, the data set's row of every position.
        class_names: At least C names.
    """
    positions = torch.cat([index for index, _ in batches]).cpu()
    probabilities = torch.cat([p for _, p in batches]).float().cpu()
    columns = {
        "index": rows[positions].numpy(),
        "class": [class_names[c] for c in probabilities.argmax(-1).tolist()],
    }
    known = zip(class_names[: probabilities.shape[1]], probabilities.T, strict=True)
    return pa.table(columns | {f"probability_{name}": p.numpy() for name, p in known})
