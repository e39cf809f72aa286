"""What a W&B run shows besides the logged scalars: who it is, and the examples that stand out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from ssl_weighting.app.callbacks.run_files import weights_table
from ssl_weighting.app.examples import descriptions, extremes, on_one_line, pictures
from ssl_weighting.app.redact import without_secrets
from ssl_weighting.data.module import SSLData
from ssl_weighting.module import SSLModule

PROJECT = "ssl-weighting"
COUNT = 16
"""Examples of each kind in a table."""
EVERY = 5
"""Evaluations between two tables during training."""
COLUMNS = ("example", "weight", "influence", "updates", "taken for", "confidence", "really")


LONGEST_TAG = 64
"""W&B takes no longer one."""


def name_wandb_run(logger: Namespace, directory: Path, recipe: str, seed: Any) -> None:
    """Give a configured ``WandbLogger`` what the user left open, before it is made.

    The run is named and identified by its folder, so that a resumed run goes on in the same W&B run; grouped by recipe,
    so that seeds stand together; and tagged.

    Args:
        logger: Class path and ``init_args`` as configured; changed in place.
        directory: The run's folder.
        recipe: Name of the recipe.
        seed: Seed of the run.
    """
    for key, value in {
        "project": PROJECT,
        "name": directory.name,
        "id": directory.name,
        "group": recipe,
        "job_type": "fit",
        "tags": [recipe[:LONGEST_TAG], f"seed{seed}"],
    }.items():
        if key in logger.init_args and logger.init_args.get(key) is None:
            logger.init_args[key] = value


def finish_wandb_runs(trainer: Trainer) -> None:
    """End the W&B runs, once all is logged: another run in this process would go on in them."""
    for logger in _loggers(trainer):
        logger.experiment.finish()


class WandbDashboard(Callback):
    """Logs the configuration, and tables of the most harmful and helpful examples with their pictures or texts.

    Tables come every fifth evaluation and at the end, under ``examples/harmful`` and ``examples/helpful``. Does nothing
    without a ``WandbLogger``.

    Args:
        recipe: Name of the recipe.
        configuration: The resolved configuration, as YAML. Loggers' part and what looks like a secret is left out.
    """

    def __init__(self, recipe: str, configuration: str) -> None:
        self.recipe, self.configuration = recipe, configuration
        self._evaluations = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the configuration."""
        everything = without_secrets(yaml.safe_load(self.configuration))
        config = {key: everything.get(key) for key in ("data", "model", "trainer")}
        config["trainer"].pop("logger", None)
        for logger in _loggers(trainer):
            logger.experiment.config.update(
                config | {"recipe": self.recipe, "seed": everything.get("seed_everything")},
                allow_val_change=True,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the tables, every fifth time."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._evaluations += 1
        if self._evaluations % EVERY == 0:
            self._log_tables(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last tables."""
        self._log_tables(trainer, pl_module)

    def _log_tables(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, SSLModule)
        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            return
        weights = weights_table(pl_module)  # every process has its part in it
        loggers = _loggers(trainer)
        if not loggers:
            return
        import wandb

        data: SSLData = trainer.datamodule  # type: ignore[attr-defined]
        found = extremes(weights, COUNT, pl_module.weighting.options.init)
        for kind, positions in zip(("harmful", "helpful"), found, strict=True):
            if not len(positions):
                continue
            places = pl_module.weighting.sampled().numpy()[positions]
            images = pictures(data, places)
            texts = [on_one_line(text, 1000) for text in descriptions(data, places)]
            rows = []
            for i, row in enumerate(weights.take(positions).to_pylist()):
                cell: Any = texts[i]
                if images is not None:
                    cell = wandb.Image(images[i], caption=texts[i])
                names = [
                    None if row[k] is None else data.class_names[row[k]] for k in ("pseudo_label", "label")
                ]
                numbers = (row["weight"], row["influence"], row["updates"])
                rows.append([cell, *numbers, names[0], row["confidence"], names[1]])
            for logger in loggers:
                table: Any = wandb.Table(columns=list(COLUMNS), data=rows)
                logger.log_metrics({f"examples/{kind}": table}, step=trainer.global_step)


def _loggers(trainer: Trainer) -> list[WandbLogger]:
    found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return found if trainer.is_global_zero else []
