"""Lightning's Trainer options: what each does here, and which this loop does not honour."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException as Misconfigured
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry

from ssl_weighting.app.launch import check_strategy
from ssl_weighting.app.names import suggestion
from ssl_weighting.errors import UserError


class TrainerOption(NamedTuple):
    """An option of Lightning's Trainer.

    Attributes:
        value: What it takes, as a word of help; empty for one that is refused.
        text: What it does here, or where it is refused what to do instead.
    """

    value: str
    text: str


def _refused(instead: str) -> TrainerOption:
    return TrainerOption("", instead)


OPTIONS: dict[str, TrainerOption] = {
    "max_steps": TrainerOption("N", "θ steps of the run"),
    "max_time": TrainerOption("DD:HH:MM:SS", "stop after this time; the run can be gone on with"),
    "val_check_interval": TrainerOption("N", "θ steps between two evaluations"),
    "log_every_n_steps": TrainerOption("N", "θ steps between two rows of metrics.csv"),
    "accelerator": TrainerOption("auto|cpu|gpu|mps", "device; auto takes the fastest there is"),
    "devices": TrainerOption("N", "how many devices, or a list of them such as [0,1]"),
    "num_nodes": TrainerOption("N", "machines, each started by torchrun or a cluster"),
    "strategy": TrainerOption("ddp|fsdp2", "several devices: whole networks, or one that is divided"),
    "precision": TrainerOption(
        "auto|32-true|...", "of the network's computations; auto: bf16-mixed where the machine is fast at it"
    ),
    "logger": TrainerOption("NAME", "WandbLogger, TensorBoard; metrics.csv is always written"),
    "callbacks": TrainerOption("[NAME]", "Lightning's, such as LearningRateMonitor, and your own"),
    "enable_progress_bar": TrainerOption("true|false", "default: on a terminal"),
    "enable_model_summary": TrainerOption("true|false", "print the network's parts"),
    "max_epochs": TrainerOption("N", "end by passes through the pool; max_steps ends it too"),
    "min_steps": TrainerOption("N", "not fewer θ steps, whatever callbacks want"),
    "min_epochs": TrainerOption("N", "not fewer passes, whatever callbacks want"),
    "check_val_every_n_epoch": TrainerOption("N|null", "null: val_check_interval counts across passes"),
    "limit_train_batches": TrainerOption("N", "batches that count as one pass"),
    "limit_val_batches": TrainerOption("N", "evaluate on some batches only"),
    "limit_test_batches": TrainerOption("N", "test on some batches only"),
    "limit_predict_batches": TrainerOption("N", "predict some batches only"),
    "num_sanity_val_steps": TrainerOption("N", "evaluation batches to try before training"),
    "enable_checkpointing": TrainerOption("true|false", "Lightning's checkpoints beside our own"),
    "deterministic": TrainerOption("true|false|warn", "torch's deterministic algorithms only"),
    "benchmark": TrainerOption("true|false", "let cuDNN try what is fastest"),
    "inference_mode": TrainerOption("true|false", "of evaluations"),
    "detect_anomaly": TrainerOption("true|false", "find the operation that made a NaN; slow"),
    "profiler": TrainerOption("simple|advanced|pytorch", "where time goes"),
    "sync_batchnorm": TrainerOption("true|false", "batch statistics over all devices"),
    "enable_autolog_hparams": TrainerOption("true|false", "let loggers have the hyperparameters"),
    "plugins": TrainerOption("NAME", "a cluster's environment, such as LSFEnvironment"),
    "accumulate_grad_batches": _refused("give --model.theta.accumulate N, which Λ steps and schedules know"),
    "gradient_clip_val": _refused("give --model.theta.clip_norm X, which clips θ's gradient"),
    "gradient_clip_algorithm": _refused("give --model.theta.clip_norm X, which clips by the norm"),
    "fast_dev_run": _refused("give --trainer.max_steps 2: a short run that writes all its files"),
    "overfit_batches": _refused(
        "steps draw batches by seed and number; give --data.num_labeled for fewer labels"
    ),
    "use_distributed_sampler": _refused("batches are divided among processes already; leave it out"),
    "reload_dataloaders_every_n_epochs": _refused("batches are drawn by seed and number; leave it out"),
    "default_root_dir": _refused("give --runs DIR, the folder that run folders go into"),
    "barebones": _refused("the run's timing.json tells its speed; leave it out"),
    "model_registry": _refused("no model is uploaded; leave it out"),
}

CALLBACKS_REFUSED = {
    "StochasticWeightAveraging": "θ is averaged already; give --model.theta.ema_decay",
    "WeightAveraging": "θ is averaged already; give --model.theta.ema_decay",
    "EMAWeightAveraging": "θ is averaged already; give --model.theta.ema_decay",
    "GradientAccumulationScheduler": "give --model.theta.accumulate",
    "BatchSizeFinder": "give --data.labeled_batch_size and --data.unlabeled_batch_size",
    "LearningRateFinder": "give --model.theta.optimizer.lr",
    "BackboneFinetuning": "a Transformer's layers are frozen by --model.backbone.frozen_layers",
    "ModelPruning": "the average of θ would not be pruned",
    "OnExceptionCheckpoint": "every run keeps its last checkpoint; leave it out",
}
PROFILERS = ("simple", "advanced", "pytorch", "xla")


def check_trainer(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options of the Trainer that this loop does not honour, and values that Lightning would stumble over.

    Args:
        options: The Trainer's resolved options.
        defaults: The defaults of this project, where they differ from Lightning's.

    Raises:
        UserError: Naming the option, the value and what to do instead.
    """
    parameters = inspect.signature(Trainer).parameters
    for name, option in OPTIONS.items():
        default = defaults.get(name, parameters[name].default)
        if not option.value and name in options and options[name] not in (None, default):
            raise UserError(f"trainer.{name}={_typed(options[name])}: not honoured here; {option.text}")
    check_strategy(options["strategy"])
    _check_accelerator(options["accelerator"])
    devices = str(options["devices"])
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+,|\d+(,\d+)+|\[\d+(, *\d+)*\]", devices):
        raise UserError(f"trainer.devices={devices}: must be a number above 0, a list such as [0,1], or auto")
    time = options.get("max_time")
    if isinstance(time, str) and not re.fullmatch(r"\d+:\d+:\d+:\d+", time.strip()):
        raise UserError(f"trainer.max_time={time}: must be days:hours:minutes:seconds, such as 00:12:00:00")
    _check_counts(options)
    profiler = options.get("profiler")
    if isinstance(profiler, str) and profiler not in PROFILERS:
        raise UserError(f"trainer.profiler={profiler}: no such profiler; {suggestion(profiler, PROFILERS)}")
    _check_plugins(options.get("plugins"))
    for path in _classes(options.get("callbacks")):
        if (name := path.rpartition(".")[2]) in CALLBACKS_REFUSED:
            raise UserError(f"trainer.callbacks={name}: not honoured here; {CALLBACKS_REFUSED[name]}")
    if "ModelCheckpoint" in {path.rpartition(".")[2] for path in _classes(options.get("callbacks"))}:
        _check_model_checkpoint(options)


def _check_counts(options: Mapping[str, Any]) -> None:
    for name in ("num_nodes", "check_val_every_n_epoch"):
        if (value := options.get(name)) is not None and value < 1:
            raise UserError(f"trainer.{name}={value}: must be at least 1")
    every, epochs = options.get("val_check_interval"), options.get("check_val_every_n_epoch")
    if not isinstance(every, int | float):
        return
    if every <= 0 or (every % 1 and (every > 1 or epochs is None)):
        kinds = "a whole number of θ steps above 0" + (
            "" if epochs is None else ", or a share of a pass up to 1"
        )
        raise UserError(f"trainer.val_check_interval={every}: must be {kinds}")


def _check_model_checkpoint(options: Mapping[str, Any]) -> None:
    if not options["enable_checkpointing"]:
        raise UserError(
            "trainer.callbacks=ModelCheckpoint: every run keeps its last checkpoints; for others beside them give "
            "--trainer.enable_checkpointing true as well"
        )


def _check_accelerator(name: Any) -> None:
    if not isinstance(name, str) or name in ("auto", "cpu"):
        return
    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    if name not in known:
        raise UserError(f"trainer.accelerator={name}: no such accelerator; {suggestion(name, known)}")
    kinds = ("cuda", "mps") if name == "gpu" else (name,)
    if not any(AcceleratorRegistry[kind]["accelerator"].is_available() for kind in kinds):
        raise UserError(
            f"trainer.accelerator={name}: torch finds none in this machine; --trainer.accelerator auto takes what "
            "there is"
        )


def _check_plugins(plugins: Any) -> None:
    for path in _classes(plugins):
        if not path.endswith("Environment"):
            raise UserError(
                f"trainer.plugins={path.rpartition('.')[2]}: not honoured here; a cluster's environment is all that it "
                "takes; see trainer.precision, trainer.strategy and checkpoint.every_steps"
            )


def refused(error: BaseException) -> UserError | None:
    """One line of what Lightning's Trainer, a logger or a callback does not take; ``None`` for other errors.

    Args:
        error: Anything that was raised while a run was made ready or trained.
    """
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    rooms = [f"{file.parent.parent.name}.{file.parent.name}" for file in files]
    message = re.split(r" \[type=|HINT: ", " ".join(str(error).split()))[0].rstrip()
    if "pytorch.loggers" in rooms:  # a logger's service may refuse whatever it likes
        return UserError(f"trainer.logger: {message}")
    if rooms[-1:] == ["pytorch.callbacks"] and isinstance(
        error, RuntimeError | ValueError | ImportError | Misconfigured
    ):
        return UserError(f"trainer.callbacks: {message}")
    return UserError(f"trainer: {message}") if isinstance(error, Misconfigured) else None


def _classes(given: Any) -> list[str]:
    """Paths of the classes that an option names."""
    entries = given if isinstance(given, list) else [given]
    return [str(entry["class_path"]) for entry in entries if entry is not None and not isinstance(entry, str)]


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
