"""How the weights are spread, over training: numbers for every logger, histograms where a logger draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from ssl_weighting.app.callbacks.metrics_csv import MetricsCsv
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting import Statistics

BINS = 64


class WeightHistogram(Callback):
    """Logs mean, standard deviation, least, largest and quantiles of Λ before training and at every evaluation.

    Of more than 2**20 unlabelled examples an even sample is looked at.

    Its histogram, 64 equal bins from the smallest to the largest weight, goes to ``weights_history.csv``, to TensorBoard
    and to W&B, the same to all. At the end it draws ``weights.png``, if any weight moved.

    Args:
        directory: The run's folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.history = MetricsCsv(directory / "weights_history.csv")

    def state_dict(self) -> dict[str, int]:
        """How long the history is at a checkpoint."""
        return {"rows": self.history.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: forget what came after it."""
        self.history.keep(int(state_dict["rows"]))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log Λ as it begins."""
        if not self.history.length:
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log Λ as it is now."""
        if not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        values = (
            pl_module.weighting.known(pl_module.weighting.sampled())[0].double().numpy()
        )  # float32: too coarse for narrow bins
        numbers = {
            "weights/mean": values.mean(),
            "weights/std": values.std(),
            "weights/min": values.min(),
            "weights/max": values.max(),
        } | {f"weights/q{q:02d}": np.quantile(values, q / 100) for q in (5, 25, 50, 75, 95)}
        numbers = {name: float(value) for name, value in numbers.items()}
        pl_module.latest.update(numbers)
        counts, edges = np.histogram(values.astype(np.float64), BINS)  # of weights that nearly agree too
        bins = {f"bin_{i:02d}": float(n) for i, n in enumerate(counts)}
        self.history.log_metrics(
            {"low": float(edges[0]), "high": float(edges[-1])} | bins, step=trainer.global_step
        )
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram_raw(
                    "weights/histogram",
                    min=float(values.min()),
                    max=float(values.max()),
                    num=values.size,
                    sum=float(values.sum()),
                    sum_squares=float(np.square(values).sum()),
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                    global_step=trainer.global_step,
                )
            elif isinstance(logger, WandbLogger):
                import wandb

                histogram: Any = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
                logger.log_metrics({"weights/histogram": histogram}, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final histogram."""
        assert isinstance(pl_module, SSLModule)
        weights, statistics = pl_module.weighting.known(pl_module.weighting.sampled())
        if trainer.is_global_zero and bool((statistics.updates > 0).any()):
            draw_histogram(pl_module, weights, statistics, self.directory / "weights.png")


def draw_histogram(module: SSLModule, weights: Tensor, statistics: Statistics, path: Path) -> None:
    """A picture of Λ; where labels are known that training did not see, right, wrong and foreign pseudo-labels apart.

    Args:
        module: The module with its Λ.
        weights: λ of the examples ``module.weighting.sampled()``, (n,).
        statistics: What happened to them.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure

    values, guesses = weights.float(), statistics.pseudo_label
    labels = module.data.judged_labels(module.weighting.sampled())
    given = (labels < 0) & (module.data.unlabeled_labels()[module.weighting.sampled()] >= 0)
    moved = statistics.updates > 0
    groups = {
        "pseudo-label right": (guesses == labels) & (labels >= 0),
        "pseudo-label wrong": (guesses != labels)
        & (labels >= 0)
        & (labels < module.num_classes)
        & (guesses >= 0),
        "foreign class": labels >= module.num_classes,
        "trained with its label": given,
        "label unknown": (labels < 0) & ~given,
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low - 0.01, high + 0.01, 61)
    colours = {"pseudo-label right": "#2a7f62", "pseudo-label wrong": "#d1495b", "foreign class": "#8338ec"}
    colours["trained with its label"] = "#b58a00"
    drawn = {
        name: values[mask & moved].numpy() for name, mask in groups.items() if bool((mask & moved).any())
    }
    axes.hist(
        list(drawn.values()),
        bins=edges.tolist(),
        histtype="stepfilled",
        alpha=0.55,
        density=True,
        color=[colours.get(name, "#6c757d") for name in drawn],
        label=[f"{name} ({len(v)}, mean {v.mean():.2f})" for name, v in drawn.items()],
    )
    axes.axvline(
        module.weighting.options.init, color="black", linewidth=1, linestyle=":", label="initial value"
    )
    axes.set_xlabel("weight λ of an unlabelled example")
    axes.set_ylabel("density")
    axes.set_title(
        f"{int(moved.sum())} of {len(values)} unlabelled examples moved; "
        f"mean {float(torch.mean(values)):.2f}, {low:.2f} to {high:.2f}"
    )
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
