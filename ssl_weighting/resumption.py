"""A resumed run does what it is told now: a checkpoint brings back state, and no options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssl_weighting.errors import UserError

OPTIONS_OF = {
    "model": "model.backbone",
    "ema": "model.backbone",
    "algorithm": "model.algorithm",
    "labeled_augmentation": "model.labeled_augmentation",
    "weights": "model.weighting",
    "record": "data",
}
"""The option that decides on what a part of the state holds."""


BEGUN = ("num_classes", "weight_init", "weight_storage", "accumulate", "decay_all", "symmetric_binary_head")
"""Options of the module that a run is begun with once and for all."""


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters of an optimiser that was just made."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def take_options(checkpoint: dict[str, Any], options: list[dict[str, Any]], schedule: LambdaLR) -> None:
    """Put the options that hold now into what a checkpoint brings back of θ's optimiser and schedule.

    Only those that were changed: an optimiser may keep numbers of its own among them (Prodigy its estimate of the rate).

    Args:
        checkpoint: Lightning's, with ``ssl_weighting.options``, those that the optimiser was made with; is changed.
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


def check_begun(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse what cannot change within a run.

    Args:
        saved: What a checkpoint holds of this program.
        now: The options ``BEGUN``, by name.

    Raises:
        UserError: Naming the option.
    """
    if "begun" not in saved:
        raise UserError(
            "ckpt_path: an earlier version of this program wrote this checkpoint, and it cannot go on; start a new run"
        )
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
            f"model.optimizer={name}: the run was begun with {saved['optimizer']}, whose moments are not {name}'s; leave "
            "it out, or start a new run"
        )
    if saved["groups"] != group_sizes(optimizer):
        raise UserError(
            "model.backbone, model.algorithm: the run trains other parameters than these ask for; leave them out, or "
            "start a new run"
        )


def group_sizes(optimizer: Optimizer) -> list[int]:
    """Numbers of parameters in each group."""
    return [len(group["params"]) for group in optimizer.param_groups]


def fitted_moments(moments: Tensor, columns: int, counts: Tensor | int) -> Tensor:
    """Moments of Λ for a rule that keeps another number of them.

    Args:
        moments: (n, M): running mean, running mean square and, with M = 3, how often the row moved.
        columns: Numbers that the rule keeps for a row.
        counts: (n,), how often each row moved, in all.

    Returns:
        (n, columns): what both know; a count that was not kept is taken from ``counts``, other moments begin at 0.
    """
    kept = moments[:, :columns]
    more = moments.new_zeros(len(moments), columns - kept.shape[1])
    if moments.shape[1] == 2 and more.shape[1]:
        more[:, 0] = torch.as_tensor(counts).to(more)
    return torch.cat((kept, more), 1)


def misfit(error: RuntimeError) -> UserError:
    """What torch says of a state that does not fit, for a person who changed an option."""
    text = " ".join(str(error).split())
    found = [part for part in OPTIONS_OF if f'"{part}.' in text or f"for {part}." in text]
    option = OPTIONS_OF[found[0]] if found else "model"
    return UserError(
        f"{option}: the checkpoint holds another kind of state than this option asks for ({text[:160]}); leave it as it "
        "was, or start a new run"
    )
