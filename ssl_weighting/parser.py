"""The parser of fit, validate, test and predict: says in one line what is wrong with what was typed."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# The packages of plug-ins, whole: jsonargparse finds a class by its short name once it is imported.
from ssl_weighting.algorithms import Algorithm
from ssl_weighting.backbones import Backbone
from ssl_weighting.data import SSLData
from ssl_weighting.errors import UserError
from ssl_weighting.influence import Influence


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, with the nearest name that exists; takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError instead of printing the usage of hundreds of options."""
        raise UserError(_explained(message, self)) from ex


def _explained(message: str, parser: LightningArgumentParser) -> str:
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    for pattern in (
        r"Option ['\"](?P<key>[\w.]+)['\"] is not accepted",
        r"(?:Key|No action for key) ['\"](?P<key>[\w.]+)['\"]",
        r"[Uu]nrecognized arguments: --(?P<key>[\w.]+)",
    ):
        if found := re.search(pattern, text):
            key = found["key"]
            near = difflib.get_close_matches(key, _known_keys(parser), n=1, cutoff=0.6)
            mend = f"did you mean {near[0]}?" if near else "`ssl-weighting fit --help` lists all"
            return f"{key}: no such key; {mend}"
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", text
    )
    text = re.sub(r" - Expected a <class 'NoneType'>.*", "", text)
    return text if len(text) < 300 else text[:297] + "..."


def _known_keys(parser: LightningArgumentParser) -> list[str]:
    keys = {action.dest for action in parser._actions}
    plugins = (
        ("data", SSLData),
        ("model.algorithm", Algorithm),
        ("model.backbone", Backbone),
        ("model.influence", Influence),
    )
    for prefix, base in plugins:
        for cls in _with_subclasses(base):
            names = {n for n in inspect.signature(cls).parameters if n not in ("args", "kwargs")}
            keys |= {f"{prefix}.{name}" for name in names} | names
    return sorted(keys)


def _with_subclasses(cls: type) -> list[type]:
    found = [cls]
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        found += _with_subclasses(subclass)
    return found
