"""The name that somebody meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(typed: str, names: Collection[str]) -> str | None:
    """The name that is most like what was typed: but for its case, but for some letters, or as a part of it.

    Args:
        typed: What was typed.
        names: Those that exist.

    Returns:
        One of them, or ``None`` if none is near.
    """
    by_small = {name.lower(): name for name in sorted(names, reverse=True)}
    small = typed.lower()
    if not small:
        return None
    if small in by_small:
        return by_small[small]
    if near := difflib.get_close_matches(small, by_small, n=1, cutoff=0.7):
        return by_small[near[0]]
    within = [name for name in by_small if len(small) > 2 and small in name]
    if within:
        return by_small[min(within, key=lambda name: (not name.startswith(small), len(name), name))]
    near = difflib.get_close_matches(small, by_small, n=1, cutoff=0.6)
    return by_small[near[0]] if near else None


def suggestion(typed: str, names: Collection[str]) -> str:
    """What to type instead: the nearest name, else all of them."""
    near = nearest(typed, names)
    return f"did you mean {near}?" if near else f"there are {', '.join(sorted(names))}"
