"""``fit``: LightningCLI with run directories, recipes by name and errors for people."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ssl_weighting.app.baseline import (
    Verdict,
    check_can_choose,
    hand_over,
    handed_over,
    judge,
    make_ready,
    untrained,
)
from ssl_weighting.app.callbacks import (
    DecisionBoundary,
    MetricsCsv,
    PoolQuality,
    RunFiles,
    Timing,
    WandbDashboard,
    WeightHistogram,
    progress_callback,
)
from ssl_weighting.app.callbacks.run_files import add_column
from ssl_weighting.app.callbacks.wandb_dashboard import finish_wandb_runs, name_wandb_run
from ssl_weighting.app.checkpoints import write_handed_over
from ssl_weighting.app.configurations import differences, share_encoder_name, summarised
from ssl_weighting.app.dashboard import has_wandb_key
from ssl_weighting.app.findings import keep_findings
from ssl_weighting.app.launch import agreed, explained, locked, on_one_line, release
from ssl_weighting.app.own_scores import keep_own_scores
from ssl_weighting.app.parser import Parser
from ssl_weighting.app.recipes import config_argument, find_recipe
from ssl_weighting.app.redact import without_secrets
from ssl_weighting.app.report.page import write_page
from ssl_weighting.app.resume import (
    Resumed,
    refuse_changes,
    refuse_without_effect,
    resumed,
    say_complete,
    say_resumed,
    typed_options,
)
from ssl_weighting.app.runs import BELONGING, OWN, Run
from ssl_weighting.app.summary import print_summary
from ssl_weighting.app.threads import said_threads
from ssl_weighting.app.trainer_options import check_trainer, refused
from ssl_weighting.data import SSLData
from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import UnwritableError, UserError
from ssl_weighting.files import check_utf8, home_path
from ssl_weighting.module import SSLModule
from ssl_weighting.precision import settled_precision

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

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can be gone on with."""
        return self.directory is not None and (self.directory / "checkpoints" / "last.ckpt").is_file()


class CLI(LightningCLI):
    """LightningCLI for this project: ``fit``. What a trained run is asked for needs no trainer, see ``evaluate``.

    Args:
        args: Command line after the program's name.
        recipe: Name of the folder that the run goes into.
        kept: Is told of the run.
        resumed: The run that goes on, if it is no new one.
    """

    def __init__(self, args: list[str], recipe: str, kept: Kept, resumed: Resumed | None = None) -> None:
        self.recipe, self.kept, self.resumed = recipe, kept, resumed
        self.typed = typed_options(args)
        self.directory: Path | None = None
        self.configuration = ""
        self.untrained: SSLModule | None = None
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` alone."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def _parse_ckpt_path(self) -> None:
        """Lightning's own version lets a checkpoint override the command line."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser class of this project."""
        self.parser_class = Parser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options, and what the model takes from the data."""
        parser.add_argument("--runs", type=str, default="runs", help="Folder that run folders go into.")
        parser.add_argument(
            "--baseline",
            type=Literal["none", "probe", "choose"],
            default="probe",
            help="Beside the result, a linear probe on all labels and nothing else; choose: hand it over where the model "
            "with the pool does not beat it in cross-validation (with a frozen backbone and data.num_validation=0).",
        )
        parser.add_lightning_class_args(RunFiles, "checkpoint")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        (precision,) = (action for action in parser._actions if action.dest == "trainer.precision")
        precision._typehint = Literal["auto"] | precision._typehint  # type: ignore[attr-defined]
        parser.set_defaults({"model.influence": {"class_path": "ssl_weighting.influence.ExactLastLayer"}})

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder: a new one, or that of the checkpoint."""
        config = self.config[self.subcommand]
        check_trainer(vars(config.trainer), TRAINER_DEFAULTS)
        config.trainer.precision = settled_precision(config.trainer.precision, config.trainer.accelerator)
        share_encoder_name(config)
        if config.data.get("init_args", {}).get("split") is not None:
            refuse_without_effect(
                self.typed, config.data.init_args.split, "add --data.split null to draw another split"
            )
        self.configuration = self._configuration()  # before this run's folder gets into it
        if self.resumed is not None:
            self.directory = self.resumed.directory
            self._compare(self.resumed)
        else:
            parent, seed = home_path(config.runs) / self.recipe, self._get(config, "seed_everything")
            self.directory = Path(agreed("directory", lambda: str(_new_directory(parent, seed))))
            self.kept.fresh = True
        self.kept.directory = self.directory
        if is_first_process():
            self.kept.lock = locked(self.directory)
        _offer_folder_to_loggers(
            config, self.directory, self.directory.parent.name, self._get(config, "seed_everything")
        )

    def _compare(self, run: Resumed) -> None:
        """Say what is not as it was, and refuse what cannot change."""
        changes = differences(run.configuration, yaml.safe_load(self.configuration))
        refuse_changes(run, changes)
        if (run.directory / "split.json").is_file() and "data.split" not in self.typed:
            # What is typed again as it was is fine: a queue starts the same command over and over.
            other = {key: self.typed[key] for key in changes if key in self.typed}
            refuse_without_effect(other, run.directory / "split.json", "start a new run with fit")
        steps = self.config[self.subcommand].trainer.max_steps
        if 0 < steps <= run.step:
            say_complete(run, steps, "trainer.max_steps" in self.typed)
        else:
            say_resumed(run, self.recipe, summarised(changes))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        assert self.directory is not None
        given = config.get("logger")
        loggers: list[Logger] = (
            [] if given in (None, True, False) else given if isinstance(given, list) else [given]
        )
        (run_files,) = (callback for callback in callbacks if isinstance(callback, RunFiles))
        run_files.directory, run_files.configuration = self.directory, self.configuration
        callbacks = [
            *(callback for callback in callbacks if callback is not run_files),
            DecisionBoundary(self.directory),
            WeightHistogram(self.directory),
            PoolQuality(),
            Timing(self.directory),
            WandbDashboard(self.directory.parent.name, self.configuration),
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
        """Load and split the data while mistakes cost nothing; a run that goes on has its split."""
        if self.resumed is not None and "data.split" not in self.typed:
            kept = self.resumed.directory / "split.json"
            self.datamodule.split_file = kept if kept.is_file() else self.datamodule.split_file
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        if self.config.fit.baseline == "choose":
            check_can_choose(self.model, self.datamodule, self.trainer.world_size)
            self.untrained = untrained(self.model)
        if is_first_process():
            print(said_threads(), flush=True)

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
        keep_own_scores(self.model, self.datamodule, self.trainer, self.directory / "weights.parquet")
        verdict = self._judged(self.directory)
        self.trainer.validate(self.model, self.datamodule, verbose=False)
        if self.datamodule.has_test:
            self.trainer.test(self.model, self.datamodule, verbose=False)
        weights, statistics = self.model.weighting.known(self.model.weighting.sampled())
        if self.trainer.is_global_zero:
            findings = keep_findings(self.directory, self.datamodule, verdict)
            page = write_page(Run(self.directory), self.datamodule)
            print_summary(self.model, weights, statistics, self.directory, page, verdict, findings)
        finish_wandb_runs(self.trainer)

    def _judged(self, directory: Path) -> Verdict | None:
        """The labels-only probe; where it is the better one and may be handed over, the checkpoint predicts by it."""
        if self.config.fit.baseline == "none":
            return None
        make_ready(self.model, self.datamodule, self.trainer.strategy)
        if not self.trainer.is_global_zero:
            return None
        steps, precision = self.trainer.max_steps, self.config.fit.trainer.precision
        verdict = judge(self.model, self.datamodule, self.untrained, steps, precision)
        if verdict is not None:
            self.model.record(verdict.numbers())
            if verdict.belonging is not None:
                verdict.belonging.save(directory / BELONGING)
                add_column(directory / "weights.parquet", OWN, verdict.belonging.probability)
            if (kept := handed_over(verdict)) is not None:
                write_handed_over(directory / "checkpoints" / "last.ckpt", kept)
                hand_over(self.model, kept)
        return verdict


def run(argv: list[str]) -> Path | None:
    """``fit``: train, or go on with a run.

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
    typed = {"runs": "runs", **typed_options(argv)}
    for option, value in typed.items():
        check_utf8(os.path.abspath(value) if option == "runs" else value, option)
    argv, recipe, goes_on = _resolved(argv)
    kept = Kept()
    try:
        CLI(argv, recipe, kept, goes_on)
    except SIGTERMException:
        raise SystemExit(143) from None
    except Exception as error:
        if kept.fresh and kept.directory is not None:
            with suppress(OSError):  # it is not empty, or another process of the run was faster
                kept.directory.rmdir()
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        fault = _fault(causes)
        if fault is None:
            raise
        if isinstance(fault, UnwritableError) and kept.has_checkpoint:
            fault = UnwritableError(
                f"{fault}. Mend that, and ssl-weighting resume {shlex.quote(str(kept.directory))} goes on"
            )
        raise fault from error
    finally:
        if kept.lock is not None:
            release(kept.lock)
    return kept.directory


def _fault(causes: list[BaseException]) -> UserError | None:
    """What a person needs to know of an error and of what it came from: jsonargparse wraps what constructors raise."""
    ours = next((on_one_line(cause) for cause in causes if isinstance(cause, UserError)), None)
    known = (fault for cause in causes for fault in (explained(cause), refused(cause)) if fault is not None)
    return ours or next(known, None)


def _resolved(argv: list[str]) -> tuple[list[str], str, Resumed | None]:
    """Recipes' names turned into what jsonargparse reads, the recipe's name, and the run that goes on, if one does.

    Its own configuration is then the recipe, and what was typed comes after it.
    """
    argv, recipe = list(argv), ""
    options = typed_options(argv)
    given, is_recipe = options.get("ckpt_path"), [False] * len(argv)
    for position, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c", *(["--ckpt_path"] if given else [])):
            continue
        last = position if equals else position + 1
        is_recipe[position : last + 1] = [True] * (last + 1 - position)
        if option != "--ckpt_path":
            path = find_recipe(value if equals else "".join(argv[last : last + 1]))
            recipe = path.resolve().parent.parent.name if path.name == "config.yaml" else path.stem
            read = config_argument(path)
            argv[last] = f"{option}={read}" if equals else read
    if given is None:
        return argv, recipe or "custom", None
    goes_on = resumed(given, home_path(options.get("runs", "runs")), recipe, options.get("seed_everything"))
    typed = [word for word, of_recipe in zip(argv[1:], is_recipe[1:], strict=True) if not of_recipe]
    own = goes_on.directory / "config.yaml"
    return [argv[0], "--config", str(own), *typed, "--ckpt_path", str(goes_on.checkpoint)], recipe, goes_on


def _new_directory(parent: Path, seed: Any) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs={parent.parent}: no folder can be made there ({error.strerror})") from None
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
