"""fit, validate, test and predict: LightningCLI with run directories, recipes by name and errors for people."""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ssl_weighting.callbacks import (
    DecisionBoundary,
    MetricsCsv,
    PoolQuality,
    RunFiles,
    Timing,
    WandbDashboard,
    WeightHistogram,
    progress_callback,
)
from ssl_weighting.callbacks.run_files import predictions_table
from ssl_weighting.callbacks.wandb_dashboard import finish_wandb_runs, name_wandb_run
from ssl_weighting.dashboard import has_wandb_key
from ssl_weighting.data import SSLData
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.guards import check_precision
from ssl_weighting.launch import agreed, check_strategy, explained, is_first_process, locked, on_one_line
from ssl_weighting.module import SSLModule
from ssl_weighting.parser import Parser
from ssl_weighting.recipes import find_recipe
from ssl_weighting.redact import without_secrets
from ssl_weighting.report.page import write_page
from ssl_weighting.runs import Run
from ssl_weighting.summary import print_summary

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # a run is counted in steps
    "max_steps": 1000,
    "check_val_every_n_epoch": None,
    "val_check_interval": 500,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,  # RunFiles keeps them
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "logger": False,
}


@dataclass
class Kept:
    """What is known of a run even if it fails: LightningCLI runs in its constructor, a failed one cannot be asked.

    Attributes:
        directory: The run's folder.
        fresh: Whether it was made for this run.
        lock: Descriptor of its lock.
    """

    directory: Path | None = None
    fresh: bool = False
    lock: int | None = None


class CLI(LightningCLI):
    """LightningCLI for this project.

    Args:
        args: Command line after the program's name.
        recipe: Name of the folder that the run goes into.
        kept: Is told of the run.
    """

    def __init__(self, args: list[str], recipe: str, kept: Kept) -> None:
        self.recipe, self.kept = recipe, kept
        self.directory: Path | None = None
        self.configuration = ""
        super().__init__(
            SSLModule,
            SSLData,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            auto_configure_optimizers=False,
            parser_kwargs={"parser_mode": "yaml"},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser class of this project."""
        self.parser_class = Parser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options, and what the model takes from the data."""
        parser.add_argument("--runs", type=str, default="runs", help="Folder that run folders go into.")
        parser.add_lightning_class_args(RunFiles, "checkpoint")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.set_defaults({"model.influence": {"class_path": "ssl_weighting.influence.ExactLastLayer"}})

    def _parse_ckpt_path(self) -> None:
        """Turn ``last`` into a path. Lightning's own version lets a checkpoint override the command line."""
        config = self.config[self.config.subcommand]
        given = config.get("ckpt_path")
        if not given:
            return
        by_name = given in ("last", "previous")
        config.ckpt_path = agreed(
            "checkpoint", lambda: str(self._named_checkpoint(Path(config.runs), given) if by_name else given)
        )
        path = Path(config.ckpt_path)
        if not path.is_file():
            raise UserError(f"ckpt_path={given}: no such file; give RUN/checkpoints/last.ckpt, or `last`")
        try:
            known = "ssl_weighting" in torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except Exception as error:  # whatever a damaged file makes torch.load raise
            before = path.with_name("previous.ckpt")
            mend = (
                f"--ckpt_path {'previous' if given == 'last' else before} takes the one before it"
                if path != before and before.is_file()
                else "give another run's, or start without --ckpt_path"
            )
            raise UserError(
                f"ckpt_path={given}: {path} is not a whole checkpoint ({type(error).__name__}); {mend}"
            ) from error
        if not known:
            raise UserError(f"ckpt_path={given}: not written by this program; give RUN/checkpoints/last.ckpt")

    def _named_checkpoint(self, runs: Path, name: str) -> Path:
        """``last.ckpt``, or ``previous.ckpt``, of the run that saved last."""
        found = sorted(
            (runs / self.recipe).glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime_ns
        )
        if not found:
            raise UserError(
                f"ckpt_path={name}: no run of {self.recipe} under {runs} has a checkpoint; start one without --ckpt_path"
            )
        return found[-1].with_name(f"{name}.ckpt")

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder: a new one, or that of the checkpoint."""
        config = self.config[self.subcommand]
        check_precision(config.trainer.precision)
        check_strategy(config.trainer.strategy)
        _share_encoder_name(config)
        checkpoint = config.get("ckpt_path")
        if checkpoint and Path(checkpoint).resolve().parent.name == "checkpoints":
            self.directory = Path(checkpoint).resolve().parent.parent
        elif self.subcommand == "fit" and not checkpoint:
            parent, seed = Path(config.runs) / self.recipe, self._get(config, "seed_everything")
            self.directory = Path(agreed("directory", lambda: str(_new_directory(parent, seed))))
            self.kept.fresh = True
        elif not checkpoint:
            raise UserError(
                f"ckpt_path: {self.subcommand} needs a trained model; give RUN/checkpoints/last.ckpt, or `last`"
            )
        else:
            self.directory = Path(checkpoint).resolve().parent
        self.kept.directory = self.directory
        if self.subcommand == "fit" and is_first_process():
            self.kept.lock = locked(self.directory)
        if self.subcommand == "fit":
            self.configuration = self._configuration()  # before this run's folder gets into it
        _offer_folder_to_loggers(config, self.directory, self.recipe, self._get(config, "seed_everything"))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        assert self.directory is not None
        given = config.get("logger")
        loggers: list[Logger] = (
            [] if given in (None, True, False) else given if isinstance(given, list) else [given]
        )
        if self.subcommand == "fit":
            (run_files,) = (callback for callback in callbacks if isinstance(callback, RunFiles))
            run_files.directory, run_files.configuration = self.directory, self.configuration
            callbacks = [
                *(callback for callback in callbacks if callback is not run_files),
                DecisionBoundary(self.directory),
                WeightHistogram(self.directory),
                PoolQuality(),
                Timing(self.directory),
                WandbDashboard(self.recipe, self.configuration),
                run_files,  # the last: where there is a checkpoint, what the others write at that step is there
            ]
            loggers = [*loggers, MetricsCsv(self.directory / "metrics.csv")]
        if config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, progress_callback()]
        config["enable_progress_bar"] = isinstance(callbacks[-1], ProgressBar)
        config["logger"] = loggers or False
        config["default_root_dir"] = str(self.directory)
        return super()._instantiate_trainer(config, callbacks)

    def before_fit(self) -> None:
        """Load and split the data while mistakes cost nothing."""
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")

    def _configuration(self) -> str:
        """config.yaml: the whole resolved configuration, which starts the same run again; no secret is copied."""
        config = self.config["fit"].clone()
        for key in ("config", "ckpt_path"):
            config.pop(key, None)
        text = str(self._parser("fit").dump(config, skip_unset=False))
        content = yaml.safe_load(text)
        clean = without_secrets(content)
        return text if clean == content else str(yaml.safe_dump(clean, sort_keys=False))

    def after_fit(self) -> None:
        """Evaluate the last averaged θ and say what came out."""
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        assert self.directory is not None
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        if self.datamodule.has_test:
            self.trainer.test(self.model, self.datamodule, verbose=False)
        weights, happened = self.model.known(self.model.sampled())
        if self.trainer.is_global_zero:
            page = write_page(Run(self.directory), self.datamodule)
            print_summary(self.model, weights, happened, self.directory, page)
        finish_wandb_runs(self.trainer)

    def test(self, **arguments: Any) -> None:
        """Print the test error of a checkpoint."""
        self.trainer.test(**arguments | {"verbose": False})
        self._print_error("test")

    def validate(self, **arguments: Any) -> None:
        """Print the validation error of a checkpoint."""
        self.trainer.validate(**arguments | {"verbose": False})
        self._print_error("validation")

    def _print_error(self, name: str) -> None:
        if self.trainer.is_global_zero:
            print(f"{name} error: {100 * self.model.latest[f'{name}/error']:.2f} %")

    def predict(self, **arguments: Any) -> None:
        """Write the class probabilities that a checkpoint gives to ``predictions.parquet``."""
        batches: Any = self.trainer.predict(**arguments | {"return_predictions": True})
        assert self.directory is not None
        if not self.trainer.is_global_zero:
            return
        path = self.directory / "predictions.parquet"
        examples = self.datamodule.sets[self.datamodule.predict_on]
        with whole_file(path) as partial:
            pq.write_table(predictions_table(batches, examples, self.datamodule.class_names), partial)
        print(f"{path}")


def run(argv: list[str]) -> Path | None:
    """Run a subcommand of LightningCLI.

    Args:
        argv: Command line after the program's name, such as ``["fit", "--config", "demo"]``.

    Returns:
        The run's folder.

    Raises:
        UserError: On bad input, before anything is trained.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It alone says which of several processes ended, and how.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    argv, recipe = _resolved(argv)
    kept = Kept()
    try:
        CLI(argv, recipe, kept)
    except SIGTERMException:
        raise SystemExit(143) from None
    except Exception as error:
        if kept.fresh and kept.directory is not None:
            with suppress(OSError):  # it is not empty, or another process of the run was faster
                kept.directory.rmdir()
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        for cause in causes:  # jsonargparse wraps what a plug-in's constructor raises
            if isinstance(cause, UserError):
                raise on_one_line(cause) from None
        for cause in causes:
            if (fault := explained(cause)) is not None:
                raise fault from error
        raise
    finally:
        if kept.lock is not None:
            os.close(kept.lock)
    return kept.directory


def _resolved(argv: list[str]) -> tuple[list[str], str]:
    """Recipes' names turned into paths; without a recipe, the one of the checkpoint's run. And the recipe's name."""
    argv, recipe, checkpoint = list(argv), "", ""
    for position, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c", "--ckpt_path"):
            continue
        value = value if equals else (argv[position + 1] if position + 1 < len(argv) else "")
        if option == "--ckpt_path":
            checkpoint = value
            continue
        path = find_recipe(value)
        recipe = path.resolve().parent.parent.name if path.name == "config.yaml" else path.stem
        argv[position if equals else position + 1] = f"{option}={path}" if equals else str(path)
    own = Path(checkpoint).resolve().parent.parent / "config.yaml" if checkpoint else None
    if not recipe and own is not None and own.is_file():
        argv[1:1] = ["--config", str(own)]
        recipe = own.parent.parent.name
    return argv, recipe or "custom"


def _share_encoder_name(config: Namespace) -> None:
    """Texts are tokenised for the encoder that reads them, unless another tokenizer is named."""
    data = config.data.get("init_args") or {}
    encoder = (config.model.backbone.get("init_args") or {}).get("name")
    if "tokenizer" in data and data["tokenizer"] is None and encoder:
        config.data.init_args.tokenizer = encoder


def _new_directory(parent: Path, seed: Any) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_seed{seed}_{secrets.token_hex(2)}"
        try:
            (parent / name).mkdir()
        except FileExistsError:
            continue
        return parent / name


def _offer_folder_to_loggers(config: Namespace, directory: Path, recipe: str, seed: Any) -> None:
    """Loggers write into the run's folder unless told otherwise; W&B stays offline without a key."""
    given = config.trainer.logger
    for logger in given if isinstance(given, list) else [given]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        if logger.init_args.get("save_dir") in (None, "."):
            logger.init_args.save_dir = str(directory)
        if logger.class_path.endswith("WandbLogger"):
            name_wandb_run(logger, directory, recipe, seed)
    if "WANDB_MODE" not in os.environ and not has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"
