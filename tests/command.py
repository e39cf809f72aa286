"""The command line as tests write it."""

from collections.abc import Mapping


def words(options: Mapping[str, object]) -> list[str]:
    """Options by name as the words of a command."""
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]
