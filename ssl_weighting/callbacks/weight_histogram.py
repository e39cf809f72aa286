"""How the weights are spread, over training: numbers for every logger, histograms where a logger draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from ssl_weighting.module import SSLModule


class WeightHistogram(Callback):
    """Logs mean, standard deviation, least, largest and quantiles of Λ at every validation, and its histogram.

    At the end it draws ``weights.png``, if any weight moved.

    Args:
        directory: The run's folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log Λ as it is now."""
        assert isinstance(pl_module, SSLModule)
        if trainer.sanity_checking:
            return
        values = pl_module.weights.values.detach().float().cpu().numpy()
        numbers = {
            "weights/mean": values.mean(),
            "weights/std": values.std(),
            "weights/min": values.min(),
            "weights/max": values.max(),
        } | {f"weights/q{q:02d}": np.quantile(values, q / 100) for q in (5, 25, 50, 75, 95)}
        numbers = {name: float(value) for name, value in numbers.items()}
        pl_module.latest.update(numbers)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram("weights/histogram", values, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                import wandb

                histogram: Any = wandb.Histogram(values.tolist(), num_bins=64)
                logger.log_metrics({"weights/histogram": histogram}, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final histogram."""
        assert isinstance(pl_module, SSLModule)
        moved = bool((pl_module.record.updates > 0).any())
        if trainer.is_global_zero and moved:
            draw_histogram(pl_module, self.directory / "weights.png")


def draw_histogram(module: SSLModule, path: Path) -> None:
    """A picture of Λ; where labels are known, right, wrong and foreign pseudo-labels apart.

    Args:
        module: The module with its Λ.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure

    values = module.weights.values.detach().float().cpu().expand(module.weights.size)
    labels, guesses = module.unlabeled_labels(), module.record.pseudo_label.cpu()
    moved = module.record.updates.cpu() > 0
    groups = {
        "pseudo-label right": (guesses == labels) & (labels >= 0),
        "pseudo-label wrong": (guesses != labels)
        & (labels >= 0)
        & (labels < module.num_classes)
        & (guesses >= 0),
        "foreign class": labels >= module.num_classes,
        "label unknown": labels < 0,
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low - 0.01, high + 0.01, 61)
    colours = {"pseudo-label right": "#2a7f62", "pseudo-label wrong": "#d1495b", "foreign class": "#8338ec"}
    shown = {
        name: values[mask & moved].numpy() for name, mask in groups.items() if bool((mask & moved).any())
    }
    axes.hist(
        list(shown.values()),
        bins=edges.tolist(),
        histtype="stepfilled",
        alpha=0.55,
        density=True,
        color=[colours.get(name, "#6c757d") for name in shown],
        label=[f"{name} ({len(v)}, mean {v.mean():.2f})" for name, v in shown.items()],
    )
    axes.axvline(module.weight_init, color="black", linewidth=1, linestyle=":", label="initial value")
    axes.set_xlabel("weight λ of an unlabelled example")
    axes.set_ylabel("density")
    axes.set_title(
        f"{int(moved.sum())} of {len(values)} unlabelled examples moved; "
        f"mean {float(torch.mean(values)):.2f}, {low:.2f} to {high:.2f}"
    )
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
