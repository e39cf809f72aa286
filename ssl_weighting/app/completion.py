"""``ssl-weighting completion bash``: a script that makes a shell complete commands, recipes, options and classes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import Any, Literal, get_args, get_origin, get_type_hints

import shtab
from lightning.pytorch import Trainer

from ssl_weighting.algorithms import Algorithm
from ssl_weighting.app.cli import COMMANDS
from ssl_weighting.app.recipes import recipe_names
from ssl_weighting.backbones import Backbone
from ssl_weighting.data import SSLData
from ssl_weighting.influence import Influence
from ssl_weighting.module import SSLModule

PLUGINS: dict[str, type] = {
    "data": SSLData,
    "model.algorithm": Algorithm,
    "model.backbone": Backbone,
    "model.influence": Influence,
}


def main(argv: list[str]) -> int:
    """Print the script for a shell, to be put where the shell looks for such scripts.

    Args:
        argv: ``bash``, ``zsh`` or ``tcsh``.

    Returns:
        The exit status, 0.
    """
    parser = argparse.ArgumentParser(
        prog="ssl-weighting completion",
        description="Print a script that makes a shell complete this program's commands, recipes and options; "
        'for now: eval "$(ssl-weighting completion bash)"',
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    print(shtab.complete(_grammar(), shell=parser.parse_args(argv).shell))
    return 0


def _grammar() -> argparse.ArgumentParser:
    """What can be typed, as a parser that nothing is parsed with."""
    grammar = argparse.ArgumentParser(prog="ssl-weighting")
    commands = grammar.add_subparsers()
    for name, entry in COMMANDS.items():
        command = commands.add_parser(name, help=entry.summary)  # shtab leaves out those without help
        if entry.takes == "recipe":
            _add_options(command)
        elif entry.takes == "shell":
            command.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
        elif entry.takes:
            command.add_argument(entry.takes).complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return grammar


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", choices=recipe_names())
    command.add_argument("--ckpt_path").complete = shtab.FILE  # type: ignore[attr-defined]
    command.add_argument("--runs").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    command.add_argument("--seed_everything")
    for key, choices in sorted(_options().items()):
        command.add_argument(f"--{key}", choices=choices)


def _options() -> dict[str, list[str] | None]:
    """Every option of ``fit``, and what it can be where that is a list of names."""
    options: dict[str, list[str] | None] = {}
    whole: dict[str, type] = {"model": SSLModule, "trainer": Trainer}
    for prefix, cls in whole.items():
        options |= {f"{prefix}.{key}": choices for key, choices in _arguments(cls).items()}
    for prefix, base in PLUGINS.items():
        concrete = [cls for cls in _with_subclasses(base) if not inspect.isabstract(cls)]
        options[prefix] = sorted({cls.__name__ for cls in concrete})
        for cls in concrete:
            options |= {f"{prefix}.{key}": choices for key, choices in _arguments(cls).items()}
    options.pop("model.num_classes")  # comes from the data
    return options


def _arguments(cls: type) -> dict[str, list[str] | None]:
    """Arguments of a class and its parents."""
    found: dict[str, list[str] | None] = {}
    for part in reversed(cls.__mro__[:-1]):
        if "__init__" not in vars(part) or not part.__module__.startswith(
            ("ssl_weighting", Trainer.__module__)
        ):
            continue
        hints: dict[str, Any] = get_type_hints(part.__init__)  # type: ignore[misc]
        for name, parameter in inspect.signature(part).parameters.items():
            group = hints.get(name)
            if isinstance(group, type) and dataclasses.is_dataclass(group):
                found |= {f"{name}.{key}": choices for key, choices in _arguments(group).items()}
            elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                literal = get_origin(hints.get(name)) is Literal
                found[name] = [str(value) for value in get_args(hints[name])] if literal else None
    return found


def _with_subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [cls, *(found for child in children for found in _with_subclasses(child))]
