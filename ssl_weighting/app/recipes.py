"""Finding recipes, by path or by name among those that travel with the package, and reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ssl_weighting.app.names import nearest
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folder() -> Path:
    """Where the recipes lie: inside the installed package, or at the top of a checkout."""
    installed = PACKAGE / "_recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes that travel with the package, without their ending."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str, given: str = "") -> Path:
    """The recipe at a path, or of a name such as ``demo``, ``demo.yaml`` or ``recipes/demo.yaml``.

    Args:
        name: The path or name.
        given: How it was given, for messages; ``--config`` and the name if nothing is said.

    Raises:
        UserError: If there is none; suggests the nearest name. Or if its YAML is not a recipe's.
    """
    if not name:
        raise UserError("--config: no recipe's name or path follows; `ssl-weighting recipes` lists the names")
    given, path = given or f"--config {name}", home_path(name)
    packaged = recipe_folder() / f"{path.stem}.yaml"
    is_bare = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml")
    if not path.is_file() and is_bare and packaged.is_file():
        path = packaged
    if path.is_file():
        check_recipe(path)
        return path
    if path.is_dir():
        inside = next((p for p in (path / "config.yaml", *sorted(path.glob("*.yaml"))) if p.is_file()), None)
        hint = f"did you mean {inside}?" if inside else "give a recipe's name or path"
        raise UserError(f"{given}: a folder, not a recipe; {hint}")
    beside = [other for ending in (".yaml", ".yml") if (other := path.with_suffix(ending)).is_file()]
    if beside:
        raise UserError(f"{given}: no such file; did you mean {beside[0]}?")
    near = nearest(path.stem, recipe_names()) if is_bare else None
    hint = f"did you mean {near}? " if near else ""
    raise UserError(f"{given}: no such file or recipe; {hint}`ssl-weighting recipes` lists them")


def read_recipe(path: Path) -> dict[str, Any]:
    """What a recipe says, on top of what the recipe says that it names as its ``base``.

    Raises:
        UserError: If there is no such base, or it leads back to the recipe.
    """
    return _read_on_base(path, [])


def config_argument(path: Path) -> str:
    """A recipe as ``--config`` takes it: its path, or its whole text where it has a base."""
    if "base" not in _content(path):
        return str(path)
    return str(yaml.safe_dump(read_recipe(path), sort_keys=False, allow_unicode=True))


def _read_on_base(path: Path, above: list[Path]) -> dict[str, Any]:
    content = _content(path)
    if "base" not in content:
        return content
    base = content.pop("base")
    given = f"base={base} in {path}"
    if not isinstance(base, str) or not base:
        raise UserError(f"{given}: must be the name or path of a recipe, or be left out")
    beside = (path.parent / base, path.parent / f"{base}.yaml")
    found = next((file for file in beside if file.is_file()), None) or find_recipe(base, given)
    check_recipe(found)
    above = [*above, path.resolve()]
    if found.resolve() in above:
        raise UserError(f"{given}: leads back to {found}; name another recipe, or leave base out")
    return _merged(_read_on_base(found, above), content)


def _content(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8-sig")))
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: {_yaml_fault(path, error)}") from None
    except ValueError as error:  # a date that the calendar has not
        raise UserError(f"--config {path}: {error}; put it into quotes") from None


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings joined, key by key; what is no mapping is replaced."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged


def check_recipe(path: Path) -> None:
    """Refuse what YAML would pass over, or stumble over without naming the place.

    Raises:
        UserError: If it cannot be read, is empty or no YAML, or says a key twice.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"--config {path}: not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: {_yaml_fault(path, error)}") from None
    if not isinstance(root, yaml.MappingNode):
        what = "empty" if root is None else "not a recipe"
        raise UserError(
            f"--config {path}: {what}; a recipe has lines such as `data: ...`, `model: ...`; take one of "
            "`ssl-weighting recipes` as an example"
        )
    for key, first, second in _said_twice(root):
        raise UserError(
            f"--config {path}: {key} stands twice, in lines {first} and {second}; keep one of them"
        )


def _yaml_fault(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "holds a character that no YAML may hold; save it again with an editor of texts"
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    text = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in text[: len(text) - len(text.lstrip())]:
        return f"line {mark.line + 1} begins with a tab; indent with spaces"
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '') or 'no YAML'}"


def _said_twice(node: yaml.Node, above: str = "") -> Iterator[tuple[str, int, int]]:
    """Keys that stand twice in the same place, with their lines: YAML takes the last one without a word."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _said_twice(item, above)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Any, int] = {}
    for key, value in node.value:
        full = f"{above}.{key.value}" if above else str(key.value)
        line = key.start_mark.line + 1
        if key.value in lines:
            yield full, lines[key.value], line
        lines[key.value] = line
        yield from _said_twice(value, full)


def main(argv: list[str]) -> int:
    """List the recipes with their descriptions; returns the exit status, 0."""
    for name in recipe_names():
        first = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:28s}{first.lstrip('# ')}")
    return 0
