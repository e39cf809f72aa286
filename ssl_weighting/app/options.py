"""``fit --help``: every option, in the order in which a person looks for it, on some pages."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from ssl_weighting.app.choices import PLUGINS, classes
from ssl_weighting.app.trainer_options import OPTIONS
from ssl_weighting.data import SSLData

WIDTH, COLUMN = 118, 40
RUN = {
    "config": ("RECIPE", "a recipe's name (`ssl-weighting recipes` lists them) or the path of a YAML file"),
    "seed_everything": ("N", "seed of everything drawn at random (0); true draws one"),
    "runs": ("DIR", "folder that run folders go into (runs)"),
    "baseline": (
        "none|probe|choose",
        "a linear probe on all labels beside the result; choose: predict by it as far as the labels, cross-validated, "
        "believe it more than the model with the pool, with a frozen backbone and data.num_validation=0 (probe)",
    ),
    "ckpt_path": (
        "last|RUN",
        "go on with a run: last is the newest of this recipe and seed; the same as `ssl-weighting resume RUN`",
    ),
    "checkpoint.every_minutes": ("X", "minutes between two checkpoints (2)"),
    "checkpoint.every_steps": ("N", "also a checkpoint every so many θ steps"),
    "print_config": ("", "print all options as a recipe, and stop"),
}
NAMED = {
    "model.backbone": "the network",
    "model.algorithm": "the method of semi-supervised learning",
    "model.influence": "how an example's influence is approximated",
    "model.theta.optimizer": "θ's optimiser",
    "model.labeled_augmentation": "augmentations of labelled examples on top of the method's own",
    "data": "the data set",
}
MODEL_FIRST = ("model.algorithm", "model.backbone", "model.influence", "model.theta.optimizer")


def options_page(parser: ArgumentParser) -> str:
    """All options, each with what it takes, what it does and its default.

    Args:
        parser: The parser of a command that trains or looks at a model.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    command = (parser.prog or "").split()[-1]
    lines = [
        f"usage: ssl-weighting {command} --config RECIPE [--key value ...]",
        "",
        "A recipe sets what its experiment needs; every option below changes it, and can stand in it too.",
        "A NAME may be a dotted path of your own class, my_package.MyClass; its options follow as --key.option value.",
    ]
    lines += ["", "Run"]
    for key, (value, text) in RUN.items():
        if key in actions:
            lines += _entry(key, value, text)
    lines += ["", "Data"]
    lines += _named("data")
    for key, action in _class_actions(SSLData, "data"):
        lines += _entry(key, _value(action), _text(action))
    lines += ["", "Model and weights"]
    model = [key for key in actions if key.startswith("model.") and not key.endswith(".help")]
    groups = {key.rpartition(".")[0] for key in model}
    model = [
        key for key in model if key in NAMED or key not in groups
    ]  # a group itself takes a file, which nobody needs
    for key in [*MODEL_FIRST, *(key for key in model if key not in MODEL_FIRST)]:
        lines += _named(key) if key in NAMED else _entry(key, _value(actions[key]), _text(actions[key]))
    lines += ["", "Lightning's Trainer"]
    for name, option in OPTIONS.items():
        if option.value and f"trainer.{name}" in actions:
            lines += _entry(
                f"trainer.{name}", option.value, option.text + _default(actions[f"trainer.{name}"])
            )
    refused = ", ".join(name for name, option in OPTIONS.items() if not option.value)
    lines += textwrap.wrap(f"Not honoured: {refused}.", WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, ""])


def _named(key: str) -> list[str]:
    """An option that takes a class: its names, and how to see the options of one."""
    names = list(classes(PLUGINS[key]))
    value = "[NAME]" if key == "model.labeled_augmentation" else "NAME"
    return _entry(key, value, f"{NAMED[key]}: {', '.join(names)}. Options of one: --{key}.help={names[0]}")


def _class_actions(cls: type, prefix: str) -> Iterable[tuple[str, argparse.Action]]:
    """Options that all classes below a base have."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, prefix)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is not None:
            yield action.dest, action


def _entry(key: str, value: str, text: str) -> list[str]:
    """Lines of an option: its name and value at the left, what it does at the right."""
    left = f"  --{key} {value}".rstrip()
    wrapped = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    if len(left) + 1 >= COLUMN:
        return [left, *(" " * COLUMN + line for line in wrapped)]
    return [f"{left:{COLUMN}s}{wrapped[0]}", *(" " * COLUMN + line for line in wrapped[1:])]


def _value(action: argparse.Action) -> str:
    """What an option takes, as a word."""
    kinds = [kind for kind in get_args(getattr(action, "_typehint", None)) if kind is not NoneType]
    hint: Any = getattr(action, "_typehint", None)
    if get_origin(hint) is Literal:
        return "|".join(str(value) for value in get_args(hint))
    hint = kinds[0] if kinds and get_origin(hint) not in (list, tuple) else hint
    words = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
    if get_origin(hint) in (list, tuple):
        return "[A,B]"
    return words.get(hint, "PATH" if "Path" in str(hint) else "VALUE")


def _text(action: argparse.Action) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|``", r"\1", str(action.help or "").replace("%%", "%"))
    return " ".join(text.split()) + _default(action)


def _default(action: argparse.Action) -> str:
    default = action.default
    if default is None or default is argparse.SUPPRESS:
        return ""
    value = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
    if isinstance(value, tuple | list):
        value = f"[{', '.join(str(item) for item in value)}]"
    return f" ({value})"
