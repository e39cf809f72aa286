"""What is looked at before training, and while it runs, so that a mistake is one line and costs nothing."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.backbones.base import Classifier
from ssl_weighting.data.base import SSLData
from ssl_weighting.errors import NonFiniteError, UnsolvedError, UserError
from ssl_weighting.influence.base import Influence, ThetaStep
from ssl_weighting.terms import LossTerm, Objective

FEW = 8
"""Examples of a kind that views, network and influence are tried on; twice as many of validation."""

MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
"""What code raises that meets inputs, or a network, that it was not made for."""


def require(key: str, value: Any, fine: bool, mend: str) -> None:
    """Refuse an option's value.

    Raises:
        UserError: Unless ``fine``.
    """
    if not fine:
        raise UserError(f"{key}={value}: {mend}")


def check_classes(num_classes: int, data: SSLData) -> None:
    """Refuse a head with more or fewer outputs than the data has classes.

    Raises:
        UserError: With both numbers.
    """
    if num_classes != data.num_classes:
        raise UserError(
            f"model.num_classes={num_classes}: the data has {data.num_classes} classes; "
            f"give num_classes={data.num_classes}"
        )


def check_vocabulary(backbone: nn.Module, data: SSLData) -> None:
    """Refuse a tokenizer that is not the encoder's: where it knows more word pieces, or fewer than half as many.

    Raises:
        UserError: With both numbers.
    """
    known, expected = getattr(data, "vocabulary_size", None), getattr(backbone, "vocabulary_size", None)
    if known and expected and not expected / 2 <= known <= expected:
        raise UserError(
            f"data.tokenizer={getattr(data, 'tokenizer_name', None)}: knows {known} word pieces, and the encoder "
            f"{expected}: its files (tokenizer.json or vocab.txt) are missing or another encoder's; put the encoder's "
            "own into its folder"
        )


def require_compiler(device: torch.device) -> None:
    """Refuse ``compile`` where the code that torch generates cannot be built.

    Raises:
        UserError: With what is missing.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(compiler) for compiler in ([named] if named else ["g++", "clang++", "gcc"])):
        raise UserError("model.compile=true: needs a C++ compiler; install g++, or name one with CXX")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("model.compile=true: needs triton on a GPU; pip install triton")


@contextmanager
def fits(option: str, what: str) -> Iterator[None]:
    """Say in one line that what an option names cannot do what it is tried on.

    Args:
        option: The option and its value, and the part that is tried.
        what: What it is tried on.

    Raises:
        UserError: For one of :data:`MISFITS`; a ``UserError`` that is raised inside goes through as it is.
    """
    try:
        yield
    except MISFITS as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{option} cannot take {what} ({said})") from error


@contextmanager
def unchanged_buffers(*modules: nn.Module) -> Iterator[None]:
    """Put the buffers of some modules back afterwards."""
    before = [{name: buffer.clone() for name, buffer in module.named_buffers()} for module in modules]
    try:
        yield
    finally:
        for module, kept in zip(modules, before, strict=True):
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])


def try_influence(
    influence: Influence, network: Classifier, objective: Objective, validation: LossTerm
) -> None:
    """Ask a copy of an influence once, for what is wrong with it whatever the numbers are.

    A Hessian that cannot be inverted is not: a few examples at an untrained θ may have one, and those of a Λ step not.

    Raises:
        UserError: If it does not fit the network, or does not answer for every example.
    """
    name, influence = type(influence).__name__, copy.deepcopy(influence)
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    for _ in range(min(influence.records_steps, 2)):  # of two, one is walked back through
        influence.record_step(ThetaStep(parameters, objective, lr=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about these few examples
        try:
            answers = influence(network, objective, validation)
        except (NonFiniteError, UnsolvedError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            return
    given = [tuple(answer.shape) for answer in answers]
    wanted = [tuple(term.mask.shape) for term in objective.terms if term.index is not None]
    if given != wanted:
        raise UserError(f"model.influence={name}: must give influences of shapes {wanted}, and gives {given}")


def shapes(inputs: Any) -> Any:
    """The shape of one example of a batch, or of each of its parts."""
    return pytree.tree_map(lambda x: tuple(x.shape[1:]), inputs)


class FiniteGuard:
    """Remembers, on the device, the first step at which a value was not finite, and says so when asked.

    Asking waits for the device, so on an accelerator it is done when logging, which waits anyway.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def see(self, step: int, values: dict[str, Tensor]) -> None:
        """Look at scalars by their names."""
        for name, value in values.items():
            bad = ~torch.isfinite(value.detach())
            first = self._first.get(name)
            if first is None:
                first = torch.full((), -1, dtype=torch.int64, device=value.device)
            self._first[name] = torch.where((first < 0) & bad, step, first)

    def check(self) -> None:
        """Stop if a value was not finite.

        Raises:
            NonFiniteError: Naming it and the step.
        """
        for name, first in self._first.items():
            if first >= 0:
                raise NonFiniteError(
                    f"{name} is not finite at step {int(first)}; the last good checkpoint is kept. Lower the learning "
                    "rate, or raise model.influence.damping if it is the influence"
                )
