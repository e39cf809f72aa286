"""One word for numbers that are not finite, whatever the solver would make of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ssl_weighting.distributed import summed
from ssl_weighting.errors import NonFiniteError
from ssl_weighting.terms import LossTerm, Objective


def check_given(influence: object, objective: Objective, validation: LossTerm) -> None:
    """Refuse a loss whose features, logits, targets or weights are NaN or infinite, in any process.

    Raises:
        NonFiniteError: Before a solver takes them for a Hessian that cannot be inverted.
    """
    terms = (*objective.terms, validation)
    given = [part for term in terms for part in (term.features, term.logits, term.target, term.mask)]
    _check(
        influence, "a feature, logit or target", (*given, *(w for w in objective.weights if w is not None))
    )


def check_influences(influence: object, influences: Iterable[Tensor]) -> None:
    """Refuse influences that are NaN or infinite, in any process.

    Raises:
        NonFiniteError: Naming the solver.
    """
    _check(influence, "an influence", influences)


def _check(influence: object, what: str, tensors: Iterable[Tensor]) -> None:
    bad = [~torch.isfinite(tensor.detach()).all() for tensor in tensors]
    if bad and summed(torch.stack(bad).sum()):
        raise NonFiniteError(
            f"model.influence={type(influence).__name__}: {what} is not finite; look for a loss or gradient that "
            "overflows (lower the learning rate), or raise model.influence.damping"
        )
