"""Options that are refused, in one form: the key as it is typed, the value, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_weighting.errors import UserError


def require(key: str, value: Any, fine: bool, hint: str) -> None:
    """Refuse an option's value.

    Args:
        key: The option, as a command line has it.
        value: What was given.
        fine: Whether it can be taken.
        hint: What is wrong with it, or what to give instead.

    Raises:
        UserError: Unless ``fine``.
    """
    if not fine:
        raise UserError(f"{key}={value}: {hint}")


def fraction(key: str, value: float, low: float = 0.0, high: float = 1.0) -> float:
    """``value``, which must lie in [low, high].

    Raises:
        UserError: If it does not.
    """
    require(key, value, low <= value <= high, f"must lie between {low} and {high}")
    return value


def positive(key: str, value: float, hint: str = "") -> float:
    """``value``, which must be above 0 and finite.

    Raises:
        UserError: If it is not.
    """
    require(key, value, 0 < value < float("inf"), f"must be above 0{hint and '; '}{hint}")
    return value


def coefficient(key: str, value: float) -> float:
    """``value``, which multiplies a loss, and so must be finite and not negative.

    Raises:
        UserError: If it is not.
    """
    require(key, value, 0 <= value < float("inf"), "must be at least 0; 0 leaves the loss out")
    return value


def damping(value: float) -> float:
    """δ of an inverse Hessian, which must be at least 0.

    Raises:
        UserError: If it is not.
    """
    require("model.influence.damping", value, value >= 0, "must be at least 0")
    return float(value)


def curvature(value: str) -> str:
    """Of an inverse Hessian: ``ggn`` (generalised Gauss-Newton) or ``hessian``.

    Raises:
        UserError: If it is neither.
    """
    return one_of("model.influence.curvature", value, ("ggn", "hessian"))


def one_of(key: str, value: str, names: Sequence[str]) -> str:
    """``value``, which must be one of some names.

    Raises:
        UserError: If it is not.
    """
    require(key, repr(value), value in names, f"must be one of {', '.join(names)}")
    return value
