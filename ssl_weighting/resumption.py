"""A resumed run does what it is told now: a checkpoint brings back state, and no options."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssl_weighting.data.split import Split
from ssl_weighting.distributed import all_objects, process_count
from ssl_weighting.errors import UserError

OPTIONS_OF = {
    "model": "model.backbone",
    "ema": "model.backbone",
    "encoder": "model.backbone",
    "algorithm": "model.algorithm",
    "labeled_augmentation": "model.labeled_augmentation",
    "weighting.weights": "model.weighting.kind",
    "weighting.stats": "data",
}
"""The option that decides on what a part of the state holds."""


FORMAT = 2
"""Of what a checkpoint holds of this program; raised when a name or a meaning in it changes."""

BEGUN = (
    "num_classes",
    "symmetric_binary_head",
    "weighting.init",
    "weighting.storage",
    "theta.accumulate",
    "theta.decay_all",
)
"""Options of the module that a run is begun with once and for all."""


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters of an optimiser that was just made."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def take_options(checkpoint: dict[str, Any], options: list[dict[str, Any]], schedule: LambdaLR) -> None:
    """Put the options that hold now into what a checkpoint brings back of θ's optimiser and schedule.

    Only those that were changed: an optimiser may keep numbers of its own among them (Prodigy its estimate of the rate).

    Args:
        checkpoint: Lightning's, with ``ssl_weighting.app.options``, those that the optimiser was made with; is changed.
        options: Those that it is made with now, a mapping each group.
        schedule: The one that holds now.
    """
    (state,), (rates,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    begun, groups = checkpoint["ssl_weighting"]["options"], state["param_groups"]
    for group, was, new, factor in zip(groups, begun, options, schedule.lr_lambdas, strict=True):
        group.update({name: value for name, value in new.items() if name not in was or was[name] != value})
        group["initial_lr"] = new["lr"]
        group["lr"] = new["lr"] * factor(rates["last_epoch"])
    rates["base_lrs"] = [group["initial_lr"] for group in groups]
    rates["_last_lr"] = [group["lr"] for group in groups]


def state_of_optimizer(wrapped: Any, options: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint keeps of θ's optimiser besides its state: its class, its groups' sizes and options.

    Args:
        wrapped: Lightning's ``LightningOptimizer``.
        options: Those that it was made with, a mapping each group.
    """
    optimizer: Optimizer = wrapped.optimizer
    return {"optimizer": type(optimizer).__name__, "groups": group_sizes(optimizer), "options": options}


def state_of_influence(mine: Any) -> dict[str, Any]:
    """What it keeps of the influence: the state of every process's, if there is one."""
    processes = process_count()
    whole = mine if mine is None or processes == 1 else all_objects(mine)
    return {"influence": whole, "processes": processes}


def state_of_split(split: Split) -> dict[str, Any]:
    """What it keeps of the data: the set's name and the split's fingerprint."""
    return {"data_set": split.data_set, "split_sha256": split.sha256()}


def check_format(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of this program.

    Raises:
        UserError: If it was not written by this program, or by an earlier version.
    """
    if "ssl_weighting" not in checkpoint:
        raise UserError(
            "ckpt_path: this checkpoint was not written by this program; give the folder of a run"
        )
    saved: dict[str, Any] = checkpoint["ssl_weighting"]
    if saved.get("format") != FORMAT:
        raise UserError(
            "ckpt_path: an earlier version of this program wrote this checkpoint, and it cannot go on; start a new run"
        )
    return saved


def check_data(saved: dict[str, Any], split: Split) -> None:
    """Refuse a checkpoint of another data set, or of another split of it.

    Raises:
        UserError: Naming what to give.
    """
    if saved["data_set"] != split.data_set:
        raise UserError(
            f"data: the run was trained on {saved['data_set']}, but data is {split.data_set}; "
            "leave options of data out"
        )
    if saved["split_sha256"] != split.sha256():
        raise UserError(
            "data: the run was trained on another split of the data; give its own with --data.split RUN/split.json"
        )


def check_processes(saved: dict[str, Any], processes: int) -> None:
    """Refuse another number of processes than an influence remembers the batches of.

    Raises:
        UserError: With both numbers.
    """
    if saved["influence"] is not None and saved["processes"] != processes:
        raise UserError(
            f"trainer.devices: the checkpoint's influence remembers the batches of {saved['processes']} processes, but "
            f"{processes} are running; go on with as many"
        )


def influence_state(saved: dict[str, Any], rank: int) -> Any:
    """What a checkpoint kept of a process's influence."""
    several = saved["influence"] is not None and saved["processes"] > 1
    return saved["influence"][rank] if several else saved["influence"]


def check_begun(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse what cannot change within a run.

    Args:
        saved: What a checkpoint holds of this program.
        now: The options ``BEGUN``, by name.

    Raises:
        UserError: Naming the option.
    """
    for name, value in now.items():
        was = saved["begun"][name]
        if was != value:
            raise UserError(
                f"model.{name}={value}: the run was begun with {was}, and goes on with it; leave it at {was}, or start a "
                "new run"
            )


def check_optimizer(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Refuse state of another optimiser, or of one of other parameters.

    Args:
        saved: What a checkpoint holds of this program: ``optimizer``, its class, and ``groups``, their sizes.
        optimizer: The one that the options ask for.

    Raises:
        UserError: Naming the option.
    """
    name = type(optimizer).__name__
    if saved["optimizer"] != name:
        raise UserError(
            f"model.theta.optimizer={name}: the run was begun with {saved['optimizer']}, whose moments are not {name}'s; "
            "leave it out, or start a new run"
        )
    if saved["groups"] != group_sizes(optimizer):
        raise UserError(
            "model.backbone, model.algorithm: the run trains other parameters than these ask for; leave them out, or "
            "start a new run"
        )


def group_sizes(optimizer: Optimizer) -> list[int]:
    """Numbers of parameters in each group."""
    return [len(group["params"]) for group in optimizer.param_groups]


def misfit(error: RuntimeError) -> UserError:
    """What torch says of a state that does not fit, for a person who changed an option."""
    text = " ".join(str(error).split())
    found = [part for part in OPTIONS_OF if f'"{part}.' in text or f"for {part}." in text]
    option = OPTIONS_OF[found[0]] if found else "model"
    return UserError(
        f"{option}: the checkpoint holds another kind of state than this option asks for ({text[:160]}); leave it as it "
        "was, or start a new run"
    )
