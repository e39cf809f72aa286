"""What somebody who typed an option wrongly needs to read: the option, the value, and what to type instead."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch import nn

from ssl_weighting.app.choices import PLUGINS, arguments, classes, prefix_of
from ssl_weighting.app.names import nearest
from ssl_weighting.app.recipes import recipe_names
from ssl_weighting.app.renamed import renamed
from ssl_weighting.app.trainer_options import OPTIONS
from ssl_weighting.data import SSLData

FIRST = ("trainer.max_steps", "trainer.max_epochs", "trainer.devices", "seed_everything", "runs", "config")
ELSEWHERE = {
    "lr": "model.theta.optimizer.lr",
    "learning_rate": "model.theta.optimizer.lr",
    "model.learning_rate": "model.theta.optimizer.lr",
    "dataset": "data",
    "gpus": "trainer.devices",
    "trainer.gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "out": "runs",
    "output": "runs",
    "output_dir": "runs",
    "log_dir": "runs",
    "resume": "ckpt_path",
    "checkpoint_path": "ckpt_path",
}
"""What other programs call an option."""
NEEDED = ("data", "model.algorithm", "model.backbone")
NO_RECIPE = (
    "--config: missing; give a recipe's name (`ssl-weighting recipes` lists them) or path; "
    "`ssl-weighting init` writes one for your own data"
)
MOST = 12
"""Most names that one line lists."""


@dataclass
class Place:
    """Where a mistake was made.

    Attributes:
        actions: The options of the parser that met it.
        of_class: The class of a plug-in whose options they are, or ``None``.
        typed: The command line.
    """

    actions: list[argparse.Action]
    of_class: type | None
    typed: list[str]

    def full(self, key: str) -> str:
        """A key as it is typed: ``damping`` of a solver is ``model.influence.damping``."""
        key = re.sub(r"\.init_args|\.class_path|\.dict_kwargs", "", key)
        key = re.sub(r"^(fit|resume|predict|test|validate)\.", "", key)
        if self.of_class is None:
            return key
        typed = [word[2:].partition("=")[0] for word in self.typed if word.startswith("--")]
        prefix = prefix_of(self.of_class)
        if issubclass(self.of_class, nn.Module):  # several options take one
            return next((word for word in typed if word.endswith(f".{key}")), f"{prefix}.{key}")
        return f"{prefix}.{key}" if prefix else key

    def hint(self, key: str) -> Any:
        """The type of an option; ``None`` if it is not known."""
        found = [action for action in self.actions if key == action.dest or key.startswith(f"{action.dest}.")]
        return getattr(max(found, key=lambda a: len(a.dest)), "_typehint", None) if found else None


def explained(message: str, place: Place) -> str:
    """One line for a person, made of what jsonargparse says.

    Args:
        message: jsonargparse's message.
        place: Where it arose.
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    patterns: tuple[tuple[str, Callable[[re.Match[str], Place], str]], ...] = (
        (r"[Uu]nrecognized arguments: (?P<words>.+)", _stray),
        (r"does not accept option ['\"](?P<key>[^'\"]+)['\"]", _unknown),
        (r"Option ['\"](?P<key>[^'\"]+)['\"] is not accepted", _unknown),
        (r"(?:Key|No action for key) ['\"](?P<key>[\w.]+)['\"]", _unknown),
        (r"arguments are required: (?P<keys>.+)", _missing),
        (r"argument (?:-\w/)?(?:-\w, )?--(?P<key>[\w.]+).*: expected (?:one|\d+) argument", _without_value),
        (
            r"^argument -h/--help",
            lambda found, place: "--help: takes no value; --KEY.help=NAME shows a class",
        ),
        (r"--(?P<key>[\w.]+)\.help: (?P<why>.+)", _help_of_nothing),
        (r"Parser key ['\"](?P<key>[\w.]+)['\"]", _wrong_value),
    )
    for pattern, answer in patterns:
        if found := re.search(pattern, text):
            return answer(found, place)
    return text if len(text) < 300 else f"{text[:297]}..."


def _stray(found: re.Match[str], place: Place) -> str:
    words = found["words"].split()
    word = words[0]
    if re.match(r"[–—−]", word):  # noqa: RUF001
        return f"{word}: begins with a dash of a text; type two hyphens, --{word.lstrip('–—−-')}"  # noqa: RUF001
    if word.startswith("--"):
        return _unknown_option(word[2:].partition("=")[0], place)
    if word.startswith("-"):
        return f"{word}: options begin with two hyphens; {_known(word.strip('-'), place)}"
    if Path(word, "config.yaml").is_file():
        return f"{word}: a run; `resume {word}` goes on with it, `fit --config {word}/config.yaml` trains the same again"
    recipe = word if Path(word).is_file() else nearest(Path(word).stem, recipe_names())
    if recipe and "config" not in _given(place):
        return f"{word}: belongs to no option; did you mean --config {recipe}?"
    return f"{word}: belongs to no option; type --key value, and a value with blanks in quotes"


def _unknown(found: re.Match[str], place: Place) -> str:
    return _unknown_option(found["key"], place)


def _unknown_option(key: str, place: Place) -> str:
    if place.of_class is None:
        return f"{place.full(key)}: no such option; {_known(place.full(key), place)}"
    if place.of_class in PLUGINS.values():
        return _of_which(place.full(key).rpartition(".")[0], key, place.of_class)
    prefix, name = prefix_of(place.of_class), key.rpartition(".")[2]
    own = [option for option in arguments(place.of_class) if option not in ("self", "params")]
    near = nearest(name, own)
    said = f"{place.full(key)}: {place.of_class.__name__} has no such option; "
    if near:
        return f"{said}did you mean {place.full(near)}?"
    others = [
        other
        for other, cls in (classes(PLUGINS[prefix]) if prefix else {}).items()
        if name in arguments(cls) and cls is not place.of_class
    ]
    has = f"it has {', '.join(own[:MOST])}" if own else "it has none"
    if len(own) > MOST:
        has += f", ... (`fit --{prefix}.help={place.of_class.__name__}` lists all)"
    return said + (f"{_either(others[:5], 'and')} would take it; " if others else "") + has


def _known(key: str, place: Place) -> str:
    if key in ELSEWHERE:
        return f"did you mean {ELSEWHERE[key]}?"
    if (moved := renamed(key)) is not None:
        return f"it is {moved} now"
    keys = [action.dest for action in place.actions if action.option_strings and action.dest != "help"]
    refused = {f"trainer.{name}" for name, option in OPTIONS.items() if not option.value}
    keys = [key for key in keys if not key.endswith(".help") and key not in refused]
    keys += [f"data.{name}" for name in arguments(SSLData)]
    group, groups = key.partition(".")[0], {k.partition(".")[0] for k in keys}
    if "." in key and group not in groups and (near := nearest(group, groups)):
        return f"did you mean {near}.{key.partition('.')[2]}?"
    plugin_keys = {
        f"{prefix}.{name}": None
        for prefix, base in PLUGINS.items()
        if prefix not in ("trainer.logger", "trainer.callbacks", "model.labeled_augmentation")
        for cls in (base, *classes(base).values())
        for name in arguments(cls)
        if name != "params"
    }
    if whole := [k for k in (*keys, *plugin_keys) if k.endswith(f".{key}")]:
        return f"did you mean {whole[0]}?" if "." in key else _or_all(_meant(key, keys, list(plugin_keys)))
    if "." in key and group not in groups:
        return f"there are {', '.join(sorted(groups))}"
    return _or_all(_meant(key, keys, list(plugin_keys)))


def _or_all(meant: list[str]) -> str:
    return f"did you mean {' or '.join(meant)}?" if meant else "`ssl-weighting fit --help` lists all"


def _meant(key: str, keys: list[str], plugin_keys: list[str]) -> list[str]:
    """Up to three options that might be meant."""
    group, _, last = key.lower().rpartition(".")
    keys = sorted(
        keys, key=lambda k: (FIRST.index(k) if k in FIRST else len(FIRST), not k.startswith("model"))
    )

    def ends(candidates: list[str]) -> list[str]:
        return [k for k in candidates if k.rpartition(".")[2].lower() == last]

    if exact := ends(keys) or ends(plugin_keys):
        within = [k for k in keys if last in k.lower().split("_") or k.lower().endswith(f"_{last}")]
        if exact[0] not in plugin_keys:
            return exact[:3]
        first = [k for k in within if k in FIRST]
        return list(dict.fromkeys([*first, *exact, *within]))[:3]
    everything = [*keys, *(k for k in plugin_keys if k not in keys)]
    inside = [k for k in everything if group and k.startswith(f"{group}.")]
    for candidates in (inside,) if inside else (everything,):
        by_last: dict[str, str] = {}
        for k in candidates:
            by_last.setdefault(k.rpartition(".")[2], k)
        if len(last) > 2 and (near := nearest(last, by_last)):
            same = [k for k in candidates if last in k.rpartition(".")[2].lower()]
            return same[:3] if last in near.lower() else [by_last[near]]
    return []


def _missing(found: re.Match[str], place: Place) -> str:
    keys = [place.full(key.strip()) for key in found["keys"].split(",")]
    if place.of_class is not None:
        name = place.of_class.__name__
        if name == "CSVLogger":
            return (
                "trainer.logger=CSVLogger: every run writes metrics.csv; leave it out, or give "
                "--trainer.logger.save_dir DIR as well"
            )
        return f"{keys[0]}: missing; {name} needs it: --{keys[0]} VALUE"
    if "config" not in _given(place):
        return NO_RECIPE
    names = list(classes(PLUGINS[keys[0]])) if keys[0] in PLUGINS else []
    return f"{keys[0]}: missing from the recipe" + (f"; there are {', '.join(names)}" if names else "")


def _given(place: Place) -> set[str]:
    """Keys of the options on the command line."""
    words = [word.lstrip("-").partition("=")[0] for word in place.typed if word.startswith("-")]
    return {"config" if word == "c" else word for word in words}


def _without_value(found: re.Match[str], place: Place) -> str:
    typed = [word for word in place.typed if word.startswith(f"--{found['key']}") and "=" not in word]
    key = typed[-1].lstrip("-") if typed else found["key"]
    return f"{key}: no value follows; type --{key} VALUE"


def _help_of_nothing(found: re.Match[str], place: Place) -> str:
    key, typed = found["key"], re.split(r"[: ]", found["why"])[-1].strip("\"'")
    base = PLUGINS.get(key)
    return f"--{key}.help={typed}: {_no_such_class(typed, base) if base else 'no such name'}"


def _wrong_value(found: re.Match[str], place: Place) -> str:
    text, key = found.string, found["key"]
    if key == "config":
        word = next((word for word in place.typed if re.match(r"-[a-z]{2}", word)), None)
        if word is not None:
            return f"{word}: options begin with two hyphens, -{word}"
        return f"--config: {text.rpartition(': ')[2]} cannot be read"
    if (nested := re.search(r"NestedArg\(key='([\w.]+)'", text)) and (base := PLUGINS.get(key)):
        if key in NEEDED and "config" not in _given(place):
            return NO_RECIPE
        return _of_which(key, nested[1], base)
    if place.full(key) == "model.weighting" and (one := re.search(r"Unable to load config '(\w+)'", text)):
        return f"model.weighting={one[1]}: it is model.weighting.kind now"
    if "Unable to load config" in text:
        return _wrong_group(found, place)
    inner = re.findall(r"(?:Got value: |Given value: |import path string: )(.*?)(?: - Expected.*)?$", text)
    value, full = _as_typed(inner[-1]) if inner else "", place.full(key)
    for option, word in pairwise(["", *place.typed]):
        if option == f"--{full}" or word.startswith(f"--{full}="):
            value = word.removeprefix(f"--{full}=")
    hint = place.hint(key)
    said = f"{full}={value}" if value else full
    ours = OPTIONS.get(full.removeprefix("trainer."))
    if ours is not None and key not in PLUGINS and _needs_words(hint):
        return f"{said}: must be {ours.text}"
    return (
        f"{said}: {_must_be(hint, value, text)}" if hint is not None else f"{said}: not a value that it takes"
    )


def _of_which(key: str, option: str, base: type) -> str:
    return f"{key}.{option}: of which? Give --{key} NAME before it; there are {_listed(list(classes(base)))}"


def _wrong_group(found: re.Match[str], place: Place) -> str:
    """What is wrong with a value of several options at once, ``--model '{...}'``."""
    key, text = found["key"], found.string
    within = list(re.finditer(r"Parser key ['\"](?P<key>[\w.]+)['\"]", text))[-1]
    if within["key"] != key:
        return explained(text[within.start() :], place)
    value = text.partition("Unable to load config '")[2].partition("' ")[0]
    return f"{key}={value}: {key} has options of its own: --{key}.OPTION VALUE; `ssl-weighting fit --help` lists them"


def _as_typed(value: str) -> str:
    """A value as it is typed."""
    if named := re.search(r"class_path['\"]?[=:] ?['\"]([\w.]+)", value):
        return named[1].rpartition(".")[2]
    return {"None": "null", "True": "true", "False": "false"}.get(
        value, value if len(value) < 80 else f"{value[:77]}..."
    )


def _alternatives(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _must_be(hint: Any, value: str, text: str) -> str:
    """What an option takes, and the nearest of it to what was given."""
    kinds = _alternatives(hint)
    literals = [str(v) for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]
    bases = [base for kind in kinds if (base := _base_of(kind)) is not None]
    if bases and (value in ("null", "[]", "") or "(" in value or "{" in value):
        return f"must be one of {_listed(list(classes(bases[0])))}"
    if bases and get_origin(kinds[0]) is list and value in classes(bases[0]):
        return f"must be a list, [{value}]"
    if bases:
        words = [word.strip(" '\"") for word in value.strip("[]").split(",")]
        wrong = [word for word in words if word not in classes(bases[0])]
        return _no_such_class((wrong or words)[0], bases[0], text)
    if literals:
        near = nearest(value, literals)
        others = [_plainly(kind) for kind in kinds if get_origin(kind) is not Literal]
        return f"must be {_either(list(dict.fromkeys([*literals, *others])))}" + (
            f"; did you mean {near}?" if near else ""
        )
    return f"must be {_either([_plainly(kind) for kind in kinds])}"


def _base_of(kind: Any) -> type | None:
    """The base of the classes that a type takes by name."""
    if inspect.isclass(kind) and get_origin(kind) is None:
        return kind if kind in PLUGINS.values() else None
    for part in get_args(kind):
        for inner in part if isinstance(part, list) else _alternatives(part):
            if (base := _base_of(inner)) is not None:
                return base
    return None


def _no_such_class(value: str, base: type, text: str = "") -> str:
    names = list(classes(base))
    if "." in value and "/" not in value:
        module, _, name = value.rpartition(".")
        if "No module named" in text:
            return f"there is no module {module} in the working folder or among what is installed"
        near = nearest(name, names)
        why = (
            f"{module} has no {name}"
            if "no attribute" in text
            else f"not a class that fits here ({base.__name__})"
        )
        return f"{why}; " + (f"did you mean {near}?" if near else f"there are {_listed(names)}")
    near = nearest(value, names)
    return f"no such name; did you mean {near}?" if near else f"no such name; there are {_listed(names)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[: 2 * MOST]) + (", ..." if len(names) > 2 * MOST else "")


def _needs_words(hint: Any) -> bool:
    """Whether an option's type has no name that a person knows, such as a plug-in of Lightning's."""
    return any(inspect.isclass(kind) and _plainly(kind) == kind.__name__ for kind in _alternatives(hint))


def _either(words: list[str], joint: str = "or") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}"


def _plainly(kind: Any) -> str:
    """A type in plain words."""
    simple = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        NoneType: "null",
        Path: "a path",
        dict: "keys with values",
    }
    origin, parts = get_origin(kind), get_args(kind)
    if kind in simple:
        return simple[kind]
    if origin is Literal:
        return _either([str(value) for value in parts])
    if origin in (list, tuple):
        examples = {int: "0, 1", float: "0.5, 2.0", str: "a, b"}
        example = examples.get(parts[0] if parts else str, "A, B")
        counted = f"{len(parts)} values" if origin is tuple and Ellipsis not in parts else "a list"
        return f"{counted} such as [{example}]"
    return simple.get(origin, getattr(kind, "__name__", "another value"))  # type: ignore[arg-type]
