"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Its message is one line that names the key, the value and the mend.

    The command line prints the line and exits with status 2; a traceback would hide it. (Not a ValueError:
    jsonargparse would take it for a type that does not match, and wrap it.)
    """


class NonFiniteError(UserError, FloatingPointError):
    """A loss or an influence became NaN or infinite. Names the step and the term."""
