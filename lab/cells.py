"""What a study's file declares: arms, levels of factors, seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ssl_weighting.app.recipes import find_recipe, read_recipe
from ssl_weighting.errors import UserError

RESULTS = 1
"""Raised when the code gives other figures for the same settings: every run is then made anew."""
# Where a run happens, not what comes out: no part of its identity.
CIRCUMSTANCES = (
    "data.root",
    "data.download",
    "data.verify_checksum",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
)
KEYS = ("recipe", "fixed", "arms", "factors", "cells", "seeds", "control")


@dataclass(frozen=True)
class Cell:
    """One arm at one level of every factor.

    Attributes:
        arm: Its name.
        levels: Factor → level, as text.
        recipe: What it starts from.
        overrides: Option → value, in the order in which they are given.
    """

    arm: str
    levels: dict[str, str]
    recipe: str
    overrides: dict[str, Any]

    def settings(self) -> str:
        """Fingerprint of all that decides its figures but the seed: renamed arms keep their runs."""
        decisive = [[k, v] for k, v in self.overrides.items() if k not in CIRCUMSTANCES]
        return hashlib.sha256(json.dumps([RESULTS, _recipe(self.recipe), decisive]).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return "  ".join((self.arm, *(f"{name} {level}" for name, level in self.levels.items())))


@cache
def _recipe(name: str) -> Any:
    return read_recipe(find_recipe(name))


@dataclass(frozen=True)
class Study:
    """A study as its file declares it.

    Attributes:
        name: The file's name without its ending.
        description: The file's first line.
        cells: All that is to be run, with every seed.
        seeds: Seeds, and so splits.
        control: The arm that others are compared to.
    """

    name: str
    description: str
    cells: list[Cell]
    seeds: list[int]
    control: str


def read_study(path: Path, more: dict[str, Any] | None = None) -> Study:
    """Read a study's file.

    ::

        # What it asks, in one line
        recipe: digits_uda              # every run starts from it; an arm or a level may name another
        fixed: {trainer.max_steps: 400}
        arms:                           # the rows of the table
          fixed: {model.weighting.kind: fixed}
          per_example: {}
        factors:                        # optional; all combinations are run
          data.num_labeled: [10, 20]    # either an option and its values,
          pool:                         # or a name, and levels of several options each
            clean: {}
            dirty: {data.known_classes: [0, 1], data.pool_classes: [2]}
        cells: [{pool: clean}, {arm: fixed, pool: dirty}]   # optional; only combinations that match one
        seeds: 20                       # 0 to 19; or 3..5; or a list
        control: fixed

    Args:
        path: The file.
        more: Options for all runs, after those of the file.

    Raises:
        UserError: Naming what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"study {path}: no such file; lab/studies/ has the project's own") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"study {path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"study {path}: not a study; it needs recipe, arms, seeds and control")
    if strange := set(content) - set(KEYS):
        raise UserError(
            f"study {path}: {sorted(map(str, strange))}: no such keys; there are {', '.join(KEYS)}"
        )
    for key in ("recipe", "arms", "seeds", "control"):
        if key not in content:
            raise UserError(f"study {path}: {key} is missing")
    arms = _mapping(path, "arms", content["arms"])
    fixed = _mapping(path, "fixed", content.get("fixed", {}))
    factors = {name: _levels(path, name, levels) for name, levels in content.get("factors", {}).items()}
    if content["control"] not in arms:
        raise UserError(f"study {path}: control: {content['control']!r} is none of the arms {list(arms)}")
    cells = []
    for levels in itertools.product(*([(n, level) for level in levels] for n, levels in factors.items())):
        for arm, own in arms.items():
            chosen = {_short(name): level for name, level in levels}
            parts = [
                fixed,
                *(factors[name][level] for name, level in levels),
                _mapping(path, arm, own),
                more or {},
            ]
            overrides = _merged(parts)
            cells.append(Cell(arm, chosen, str(overrides.pop("recipe", content["recipe"])), overrides))
    if "cells" in content:
        wanted = [{str(k): str(v) for k, v in c.items()} for c in content["cells"]]
        cells = [cell for cell in cells if any(matches(cell, want) for want in wanted)]
    if not cells:
        raise UserError(f"study {path}: no combination of arms and factors matches its cells")
    description = text.splitlines()[0].lstrip("# ")
    return Study(path.stem, description, cells, parse_seeds(content["seeds"]), content["control"])


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"study {path}: {name}: {value!r} must be a mapping")
    return value


def _levels(path: Path, name: str, levels: Any) -> dict[str, dict[str, Any]]:
    if isinstance(levels, list) and levels:
        return {str(value): {name: value} for value in levels}
    return {str(level): _mapping(path, level, own) for level, own in _mapping(path, name, levels).items()}


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All options; one given again takes its later place, as on a command line."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            merged.pop(key, None)
            merged[key] = value
    return merged


def matches(cell: Cell, wanted: dict[str, str]) -> bool:
    """Whether a cell has this ``arm`` and these levels."""
    return all(({"arm": cell.arm} | cell.levels).get(_short(name)) == level for name, level in wanted.items())


def parse_seeds(value: Any) -> list[int]:
    """``20`` (0 to 19), ``"3..5"`` (both included) or a list.

    Raises:
        UserError: If it is none of these, or none at all.
    """
    try:
        if isinstance(value, int):
            seeds = list(range(value))
        elif isinstance(value, str) and ".." in value:
            first, last = value.split("..")
            seeds = list(range(int(first), int(last) + 1))
        else:
            seeds = [int(seed) for seed in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        raise UserError(f"seeds: {value!r} must be a number of seeds, a range 0..2, or a list") from None
    if not seeds:
        raise UserError(f"seeds: {value!r} are none; 1 means seed 0 alone, 3..3 seed 3 alone")
    return seeds
