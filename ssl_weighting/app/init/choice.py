"""What ``init`` chooses and why, and the parts of a recipe that all kinds of data share."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssl_weighting.data.module import SSLData
from ssl_weighting.data.near_duplicates import counted, described, find_pairs, leaked
from ssl_weighting.errors import DataWarning, UserError

LOOKED_AT = 300
"""Images or texts whose size is looked at."""


@dataclass
class Choice:
    """A recipe in the making.

    Attributes:
        data: Arguments of the data set.
        backbone: The network's, as it stands in the recipe.
        steps: θ steps.
        notes: What was chosen, and why.
        remarks: What a person should know of the data.
    """

    data: dict[str, Any]
    backbone: tuple[str, dict[str, Any]] = ("", {})
    steps: int = 0
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note(self, what: str, value: object, why: str) -> None:
        """Remember a choice, to be told."""
        self.notes.append((what, str(value), why))


def make_a_pool(choice: Choice, labels: Tensor, how: str, given: bool) -> None:
    """All examples have a label and there is no pool: most labels are put aside, as if they were not known.

    Args:
        choice: The recipe.
        labels: (n,) int64, one a labelled example that is no copy of another.
        how: How to give unlabelled examples, for messages.
        given: Whether there was a pool, all of which are copies of labelled or test examples.

    Raises:
        UserError: If there are too few examples to put some aside.
    """
    counts = labels.bincount()
    left = int(counts.sum())
    wanted = min(max(4 * len(counts), left // 4), max(len(counts), left // 2))
    if wanted >= left:
        raise UserError(
            f"there is no pool, and {len(labels)} labelled examples of {len(counts)} classes, copies not counted, are "
            f"too few to put some aside as one: give unlabelled examples ({how}), or at least 2 labelled ones a class"
        )
    choice.data["num_labeled"] = wanted
    why = "the pool holds copies only" if given else "no pool was given"
    choice.note("num_labeled", wanted, f"{why}: examples beyond these are it, labels unseen")


def set_up(module: SSLData, choice: Choice) -> None:
    """Load and split, and note what there is, near duplicates too."""
    module.prepare_data()
    module.setup("fit")
    if module.has_test:
        module.setup("test")
    found = {part: len(examples) for part, examples in module.sets.items()}
    names = module.class_names
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    choice.note("classes", module.num_classes, listed)
    choice.note("labelled", found["labeled"], "to train on")
    choice.note("validation", 0, "every label trains: weights are learned on them")
    choice.note(
        "unlabelled", found["unlabeled"], "the pool, each with a weight; labelled examples among them"
    )
    without = "none given: the cross-validated error is all there is"
    choice.note("test", found.get("test", 0), "tested once, at the end" if "test" in found else without)
    descriptors = described(module.sets)
    if isinstance(descriptors, str):
        choice.note("near duplicates", "?", descriptors)
        return
    pairs = find_pairs(descriptors)
    choice.note(
        "near duplicates",
        len({(some.part, row) for some in pairs for row in some.rows.tolist()}),
        "; ".join(counted(pairs)) or "none found",
    )
    if said := leaked(pairs, module.sets):
        warnings.warn(said, DataWarning, stacklevel=2)


def said_once(said: Sequence[warnings.WarningMessage]) -> list[str]:
    """What a person should know of their data, once: a file is read several times, under the names of two options."""
    found: dict[tuple[str, str], str] = {}
    for message in (str(one.message) for one in said if issubclass(one.category, DataWarning)):
        key, _, what = message.partition(": ")
        found.setdefault((Path(key).name.rpartition(" ")[2].rpartition("=")[2], what), message)
    return list(found.values())


class _Quoting(yaml.SafeDumper):
    """Every text in quotes, so that none is taken for a number or a word of YAML; what YAML cannot hold, escaped."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def _in_yaml(value: Any) -> str:
    """A value as it stands in a recipe, on one line."""
    listed = yaml.dump(
        [value], Dumper=_Quoting, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False
    )
    return str(listed).strip()[1:-1]


def data_part(kind: str, arguments: dict[str, Any], sizes: dict[str, int]) -> str:
    """The recipe's ``data``, with the sizes of the split's parts in a comment."""
    lines = [f"    {key}: {_in_yaml(value)}" for key, value in arguments.items()]
    comment = (
        f"{sizes['labeled']} labelled, {sizes['validation']} validation, {sizes['unlabeled']} unlabelled"
    )
    lines[-1] += f" # {comment}; without it, one is drawn by the seed"
    return "\n".join(["data:", f"  class_path: {kind}", "  init_args:", *lines])


def backbone_part(choice: Choice) -> str:
    """The recipe's ``model.backbone``."""
    name, arguments = choice.backbone
    lines = ["  backbone:", f"    class_path: {name}"]
    return "\n".join([*lines, f"    init_args: {_in_yaml(arguments)}"] if arguments else lines)


def tell(choice: Choice, recipe: Path, split: Path) -> None:
    """Print what was chosen and why, what was written, and the command that comes next."""
    from rich.text import Text as Plain

    table = Table(title=Plain(str(recipe)), title_justify="left", show_header=False)
    for overflow in ("ellipsis", "fold", "fold"):  # paths are longer than lines, and none of them is cut
        table.add_column(overflow=overflow)  # type: ignore[arg-type]
    for what, value, why in choice.notes:
        table.add_row(Plain(what), Plain(value), Plain(why))
    console = Console(soft_wrap=True)
    console.print(table)
    for remark in choice.remarks:
        console.print(f"look at: {remark}", highlight=False, markup=False)
    console.print(f"wrote {recipe} and {split}", highlight=False, markup=False)
    console.print(
        f"next: ssl-weighting fit --config {shlex.quote(str(recipe))}", highlight=False, markup=False
    )
