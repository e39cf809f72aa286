"""Which of the network's parameters count as trainable when an inverse Hessian is approximated."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

from ssl_weighting.errors import UserError

PRESETS = ("last_layer", "last_block", "all")


def readable(name: str) -> str:
    """A parameter's name without what ``torch.compile`` put into it."""
    return name.replace("_orig_mod.", "")


def check_scope(scope: str, key: str = "model.influence.scope") -> str:
    """``scope``, if it is a preset or a regular expression.

    Args:
        scope: As it was given.
        key: The option, for the message.

    Raises:
        UserError: If it is neither.
    """
    try:
        re.compile(scope)
    except re.error as error:
        raise UserError(
            f"{key}={scope!r}: not one of {', '.join(PRESETS)}, nor a regular expression: {error}"
        ) from None
    return scope


def scope_parameters(
    network: nn.Module, scope: str, head: str = "classifier", key: str = "model.influence.scope"
) -> dict[str, Tensor]:
    """The trainable parameters of a scope, detached, by their names in ``network.named_parameters()``.

    Args:
        network: A classifier: ``backbone`` and ``heads``.
        scope: ``last_layer``: the linear head. ``last_block``: the head and the backbone's last residual
            block with all that follows it; a backbone says which by a regular expression ``last_block``,
            matched at the start of its own parameters' names; failing that it is the last child, with
            parameters, of its outermost list of layers. ``all``: every parameter. Else a regular
            expression, searched for in the names.
        head: Which head counts as the last layer.
        key: The option that gave the scope, for the message.

    Returns:
        Names to tensors, in the network's order. Frozen parameters are left out.

    Raises:
        UserError: If there are none.
    """
    trainable = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    of_head = f"heads.{head}."
    if scope == "all":
        chosen = trainable
    elif scope == "last_layer":
        chosen = {n: p for n, p in trainable.items() if readable(n).startswith(of_head)}
    elif scope == "last_block":
        pattern = last_block_pattern(network)
        chosen = {
            n: p
            for n, p in trainable.items()
            if readable(n).startswith(of_head) or re.match(pattern, readable(n))
        }
    else:
        chosen = {n: p for n, p in trainable.items() if re.search(scope, readable(n))}
    if not chosen:
        raise UserError(f"{key}={scope!r}: matches no trainable parameter, such as {_examples(trainable)}")
    return chosen


def last_block_pattern(network: nn.Module) -> str:
    """A regular expression for the names of the last block's parameters, from the start of the name."""
    backbone = network.get_submodule("backbone")
    named = getattr(backbone, "last_block", None)
    if isinstance(named, str) and named:
        return rf"backbone\.(?:{named})"
    names = [readable(n) for n, _ in backbone.named_parameters()]
    first = _last_stage(backbone)
    following = names[next(i for i, n in enumerate(names) if n.startswith(first)) :] if first else names[-2:]
    return rf"backbone\.(?:{'|'.join(map(re.escape, following))})$"


def _last_stage(backbone: nn.Module) -> str | None:
    for name, module in backbone.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            stages = [key for key, child in module.named_children() if any(True for _ in child.parameters())]
            if len(stages) > 1:
                return readable(".".join(filter(None, (name, stages[-1], ""))) + ".").replace("..", ".")
    return None


def _examples(names: Iterable[str]) -> str:
    return ", ".join(list(map(readable, names))[-3:])
