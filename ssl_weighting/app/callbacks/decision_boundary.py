"""What the network makes of the plane, and the weights of the points in it, over training (Fig. 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_weighting.data.module import SSLData
from ssl_weighting.files import whole_file
from ssl_weighting.module import SSLModule

SIDE = 100
MARGIN = 0.15


class DecisionBoundary(Callback):
    """Takes frames of a run on points in the plane, and writes them to ``boundary.npz`` when it ends.

    Does nothing where inputs are not two numbers. ``boundary.npz`` holds, for F frames, |U| unlabelled points and a grid
    of 100 × 100: ``steps`` int64 (F,); ``classes`` uint8 (F, 100, 100), the class that the averaged θ gives to each point
    of the grid, rows from below; ``weights`` float32 and ``guesses`` int8 (F, |U|), λ and the class given to each
    unlabelled point; ``points`` float32 (|U|, 2) and ``labels`` int8 (|U|,), −1 where unknown; ``labeled`` and
    ``validation``, points float32 (·, 2), with ``labeled_labels`` and ``validation_labels``; ``extent`` float32 (4,):
    left, right, bottom, top.

    Args:
        directory: The run's folder.
        frames: How many, besides the first; evenly spread over the run.
    """

    def __init__(self, directory: Path, frames: int = 60) -> None:
        self.directory, self.frames = directory, frames
        self._frames: dict[str, list[Tensor]] = {"steps": [], "classes": [], "weights": [], "guesses": []}

    def state_dict(self) -> dict[str, Any]:
        """The frames so far: a resumed run has them all."""
        return {name: torch.stack(kept) for name, kept in self._frames.items() if kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the frames of a checkpoint."""
        self._frames |= {name: list(kept) for name, kept in state_dict.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The frame before the first step."""
        if trainer.global_step == 0:
            self._take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A frame when it is time."""
        assert isinstance(pl_module, SSLModule)
        every = max(1, trainer.max_steps // self.frames)
        stepped = (batch_idx + 1) % pl_module.batches_per_step == 0
        if stepped and (trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps):
            self._take(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the frames."""
        assert isinstance(pl_module, SSLModule)
        if not self._frames["steps"] or not trainer.is_global_zero:
            return
        data = _data(trainer)
        parts = {name: _points(data, name) for name in ("unlabeled", "labeled", "validation")}
        arrays = {name: torch.stack(kept).numpy() for name, kept in self._frames.items()}
        arrays |= {
            "points": parts["unlabeled"].numpy(),
            "labels": pl_module.data.unlabeled_labels().to(torch.int8).numpy(),
        }
        for name in ("labeled", "validation"):
            arrays |= {
                name: parts[name].numpy(),
                f"{name}_labels": data.sets[name].labels.to(torch.int8).numpy(),
            }
        arrays["extent"] = np.asarray(_extent(parts["unlabeled"]), dtype=np.float32)
        with whole_file(self.directory / "boundary.npz") as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @torch.no_grad()
    def _take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        data = _data(trainer)
        if not _in_the_plane(data):
            return
        points = _points(data, "unlabeled")
        weights, _ = pl_module.weighting.known(torch.arange(len(points)))  # every process has its part in it
        if not trainer.is_global_zero:
            return
        left, right, bottom, top = _extent(points)
        y, x = torch.meshgrid(
            torch.linspace(bottom, top, SIDE), torch.linspace(left, right, SIDE), indexing="ij"
        )
        classes = _classes(pl_module, data, torch.cat((torch.stack((x.flatten(), y.flatten()), 1), points)))
        frame = {
            "steps": torch.tensor(trainer.global_step),
            "classes": classes[: SIDE * SIDE].view(SIDE, SIDE).to(torch.uint8),
            "weights": weights.float().clone(),
            "guesses": classes[SIDE * SIDE :].to(torch.int8),
        }
        for name, value in frame.items():
            self._frames[name].append(value)


def _classes(module: SSLModule, data: SSLData, points: Tensor) -> Tensor:
    """Classes (n,) that the averaged θ gives to raw points (n, 2)."""
    classes: Tensor = module.ema.model(data.view(points.to(module.device), ())).logits.argmax(-1)
    return classes.cpu()


def _data(trainer: Trainer) -> SSLData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, SSLData)
    return data


def _points(data: SSLData, part: str) -> Tensor:
    """Raw points (n, 2) of a list of the split."""
    points = data.sets[part].raw()
    assert isinstance(points, Tensor)
    return points


def _in_the_plane(data: SSLData) -> bool:
    raw = data.sets["labeled"].raw(slice(1))
    return isinstance(raw, Tensor) and raw.is_floating_point() and raw.shape[1:] == (2,)


def _extent(points: Tensor) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a frame around points (n, 2)."""
    low, high = points.min(0).values, points.max(0).values
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])
