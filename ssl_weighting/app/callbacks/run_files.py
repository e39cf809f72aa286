"""What a run leaves on disk while it trains: checkpoints, the split and the weights."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_weighting.app.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.data.split import write_split
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.module import SSLModule


class RunFiles(Callback):
    """Writes ``config.yaml``, ``split.json``, ``checkpoints/last.ckpt`` and ``weights.parquet`` into the run's folder.

    The checkpoint before the last stays as ``checkpoints/previous.ckpt``. SIGTERM (pre-emption) and Ctrl-C let the θ step
    and an evaluation that follows it end, save, and exit with 143 and 130; a second Ctrl-C does not wait.

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
        self._saved_at, self._saved_step, self._between_steps = 0.0, -1, False
        self._metrics: list[MetricsCsv] = []
        self._asked_to_stop = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module where the run's files are."""
        assert isinstance(pl_module, SSLModule)
        pl_module.directory, pl_module.configuration = self.directory, self.configuration
        self._metrics = [logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)]

    def state_dict(self) -> dict[str, int]:
        """How long ``metrics.csv`` is at a checkpoint."""
        return {"rows": self._metrics[0].length if self._metrics else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, even of a run that has nothing left to train: forget what came after it."""
        for logger in self._metrics:
            logger.keep(int(state_dict["rows"]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the split, and a first checkpoint so that the run can be resumed from here on."""
        if self.directory is not None and trainer.is_global_zero:
            self._write_configuration(self.directory, trainer.global_step)
        if self.directory is not None and threading.current_thread() is threading.main_thread():
            self._asked_to_stop = signal.SIGTERM if trainer.received_sigterm else 0
            # In the place of Lightning's, which starts a collective wherever the signal comes; Lightning puts back
            # what was there before when training is over.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask_to_stop)
        self._save(trainer, pl_module)

    def _write_configuration(self, directory: Path, step: int) -> None:
        """``config.yaml``; that of the steps before, where it was another, stays as ``config-until-STEP.yaml``."""
        path = directory / "config.yaml"
        if path.exists():
            before = path.read_text(encoding="utf-8")
            if yaml.safe_load(before) == yaml.safe_load(self.configuration):
                return
            with whole_file(directory / f"config-until-{step}.yaml") as partial:
                partial.write_text(before, encoding="utf-8")
        with whole_file(path) as partial:
            partial.write_text(self.configuration, encoding="utf-8")

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = number

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint when it is time, and stop when that was asked for.

        Not after the step before: an evaluation that follows a step belongs to it, and Lightning does not make up for it.
        """
        assert isinstance(pl_module, SSLModule)
        step = trainer.global_step
        if batch_idx % pl_module.batches_per_step:
            return
        due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        asked = self._asked_to_stop
        if trainer.world_size > 1:
            local = torch.tensor([int(due), asked], device=pl_module.device)
            due, asked = trainer.strategy.reduce(local, reduce_op="max").tolist()
        if self.every_steps and step % self.every_steps == 0:
            due = True
        if (asked or due) and step != self._saved_step:
            self._between_steps = True
            self._save(trainer, pl_module)
            self._between_steps = False
        if asked:
            if trainer.is_global_zero:
                name = signal.Signals(asked).name
                print(
                    f"{name}: step {step} is saved; ssl-weighting resume {self.directory} goes on",
                    file=sys.stderr,
                )
            raise SystemExit(128 + asked)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Between two steps, count batches as Lightning does at the end of the first; else it would skip one."""
        if self._between_steps:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts["ready"] -= 1
                counts["completed"] -= 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all weights, and the last checkpoint: a resumed run does not come here again."""
        self._save(trainer, pl_module, last=True)

    def _save(self, trainer: Trainer, pl_module: LightningModule, last: bool = False) -> None:
        assert isinstance(pl_module, SSLModule)
        directory, step, file = self.directory, trainer.global_step, pl_module.weighting.file
        if directory is None:
            return
        if last or pl_module.weighting.options.storage == "memory":
            write_weights(pl_module, directory / "weights.parquet")
        if trainer.is_global_zero:
            (directory / "checkpoints").mkdir(exist_ok=True)
            if not (directory / "split.json").exists():
                write_split(pl_module.split(), directory / "split.json")
            path = directory / "checkpoints" / "last.ckpt"
            with whole_file(path) as partial:
                trainer.save_checkpoint(partial)
                if file is not None:
                    file.journal(step)
                _keep_previous(path)
            _make_newest(path)
            if file is not None:
                file.settle(step)
        else:
            trainer.save_checkpoint(directory)  # takes part in gathering the state; writes nothing
        if file is not None:
            trainer.strategy.barrier("weights.rows")
            file.forget(step)
        self._saved_at, self._saved_step = time.monotonic(), step


def _keep_previous(path: Path) -> None:
    """``last.ckpt`` under a second name; ``previous.ckpt`` is there at every moment."""
    if not path.exists():
        return
    partial = path.with_name(".previous.ckpt.partial")
    partial.unlink(missing_ok=True)
    with suppress(OSError):  # a file system without links keeps one checkpoint
        partial.hardlink_to(path)
        partial.replace(path.with_name("previous.ckpt"))


def _make_newest(path: Path) -> None:
    """Make sure that ``--ckpt_path last`` finds this one, even if the clock was set back since another was written."""
    others = (p for p in path.parents[2].glob("*/checkpoints/last.ckpt") if p != path)
    newest = max((p.stat().st_mtime_ns for p in others), default=0)
    if path.stat().st_mtime_ns <= newest:
        os.utime(path, ns=(newest + 1, newest + 1))


CHUNK = 2**20


def write_weights(module: SSLModule, path: Path) -> None:
    """:func:`weights_table` of all unlabelled examples. Every process must call this; the first one writes."""
    chunks = torch.split(torch.arange(module.weighting.size), CHUNK)
    if not module.trainer.is_global_zero:
        for positions in chunks:
            module.weighting.known(positions)
        return
    with whole_file(path) as partial, ExitStack() as stack:
        writer = None
        for positions in chunks:
            table = weights_table(module, positions)
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_table(table)


def add_column(path: Path, name: str, values: np.ndarray) -> None:
    """Add a column to ``weights.parquet``, in place of one of that name.

    Args:
        path: The file.
        name: ``own_probability`` or ``own_score``.
        values: (|U|,) float32.
    """
    table = pq.read_table(path)
    table = table.drop_columns([column for column in table.column_names if column == name])
    with whole_file(path) as partial:
        pq.write_table(table.append_column(name, pa.array(values)), partial)


def weights_table(module: SSLModule, positions: Tensor | None = None) -> pa.Table:
    """Λ as a table, a row an unlabelled example. With sharded weights every process must call this.

    Columns: ``index`` (row in the data set's training examples), ``weight``, ``updates``, ``influence`` (null before
    the first Λ step that saw it), ``pseudo_label`` and ``confidence`` (null before it was seen), ``label`` (null if
    unknown; counts through the class names, those that only the pool holds come last).

    Args:
        module: The module with its Λ.
        positions: Which of them, (n,) int64; default all, or a sample of very many.
    """
    positions = module.weighting.sampled() if positions is None else positions
    weights, statistics = module.weighting.known(positions)
    record = {name: column.numpy() for name, column in statistics._asdict().items()}
    labels = module.data.unlabeled_labels()[positions].numpy()
    seen = record["pseudo_label"] >= 0
    return pa.table(
        {
            "index": module.split().unlabeled[positions].numpy(),
            "weight": weights.numpy(),
            "updates": record["updates"],
            "influence": pa.array(record["influence"], mask=np.isnan(record["influence"])),
            "pseudo_label": pa.array(record["pseudo_label"], mask=~seen),
            "confidence": pa.array(record["confidence"], mask=~seen),
            "label": pa.array(labels, mask=labels < 0),
        }
    )
