"""Finding recipes: by path, or by name among those that travel with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from ssl_weighting.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def recipe_folder() -> Path:
    """Where the recipes lie: inside the installed package, or at the top of a checkout."""
    installed = PACKAGE / "_recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes that travel with the package, without their ending."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The recipe at a path, or of a name such as ``demo``, ``demo.yaml`` or ``recipes/demo.yaml``.

    Raises:
        UserError: If there is none; suggests the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = recipe_folder() / f"{path.stem}.yaml"
    is_bare = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if is_bare and packaged.is_file():
        return packaged
    near = difflib.get_close_matches(path.stem, recipe_names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--config {name}: no such file or recipe; {hint}`ssl-weighting recipes` lists them")


def main(argv: list[str]) -> int:
    """List the recipes with their descriptions; returns the exit status, 0."""
    for name in recipe_names():
        first = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:28s}{first.lstrip('# ')}")
    return 0
