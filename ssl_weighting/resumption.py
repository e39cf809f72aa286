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


def take_options(optimizer: Optimizer, fresh: Optimizer, scheduler: LambdaLR) -> None:
    """Give an optimiser that came back with its state the options of one that was just made.

    Args:
        optimizer: With momentum and moments, and the options of old.
        fresh: Of the same parameters, with the options that hold.
        scheduler: Of the former; the rate of its present step is set.
    """
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({name: value for name, value in new.items() if name != "params"})
        group["initial_lr"] = new["lr"]
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def check_optimizer(saved: dict[str, Any], fresh: Optimizer) -> None:
    """Refuse state of another optimiser, or of one of other parameters.

    Args:
        saved: What a checkpoint holds of this program: ``optimizer``, its class, and ``groups``, their sizes.
        fresh: The optimiser that the options ask for.

    Raises:
        UserError: Naming the option.
    """
    name = type(fresh).__name__
    if saved["optimizer"] != name:
        raise UserError(
            f"model.optimizer={name}: the run was begun with {saved['optimizer']}, whose moments are not {name}'s; leave "
            "it out, or start a new run"
        )
    if saved["groups"] != group_sizes(fresh):
        raise UserError(
            "model.decay_all, model.backbone: the run trains other parameters, or decays others; leave these options as "
            "they were, or start a new run"
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
