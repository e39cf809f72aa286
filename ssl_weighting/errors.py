"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations


def named(key: str, value: object) -> str:
    """What was given, as a person typed it: ``--on x`` or ``data.test=x``, or ``run="x"`` in Python."""
    if key.startswith("--"):
        return f"{key} {value}"
    return f'{key}="{value}"' if key in ("run", "examples") else f"{key}={value}"


def one_line(error: BaseException) -> str:
    """Type and message of an error, for use inside a one-line message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class UserError(Exception):
    """Bad input. Its message is one line that names the key, the value and what to do.

    The command line prints the line and exits with status 2; a traceback would hide it. (Not a ValueError:
    jsonargparse would take it for a type that does not match, and wrap it.)
    """


class LocalError(UserError):
    """What one of several processes may meet alone; bad input is met by all, and the first one speaks for them."""


class UnwritableError(LocalError):
    """A file cannot be written: no room, no permission."""


class PeerError(UserError):
    """Another process of the run is gone."""


class NonFiniteError(LocalError, FloatingPointError):
    """A loss or an influence became NaN or infinite. Names the step and the term."""


class DataWarning(UserWarning):
    """What a person should know of their data: passed over, left out, or not as it seems. ``init`` shows it too."""


class UnsolvedError(UserError):
    """An influence's system of equations has no solution for a batch at the present θ; it may have one for others."""
