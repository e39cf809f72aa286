"""Options that are refused, in one form: the key as it is typed, the value, the mend."""

from __future__ import annotations

from typing import Any

from ssl_weighting.errors import UserError


def require(key: str, value: Any, fine: bool, mend: str) -> None:
    """Refuse an option's value.

    Args:
        key: The option, as a command line has it.
        value: What was given.
        fine: Whether it can be taken.
        mend: What is wrong with it, or what to give instead.

    Raises:
        UserError: Unless ``fine``.
    """
    if not fine:
        raise UserError(f"{key}={value}: {mend}")
