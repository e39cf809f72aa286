"""``ssl-weighting predict``, ``test`` and ``validate``: a run's own model, preprocessing and split, by its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_weighting.app.checkpoints import Saved, find_checkpoint, open_checkpoint
from ssl_weighting.app.configurations import summarised
from ssl_weighting.app.predictions import check_out, predictions_table, write_beside, write_predictions
from ssl_weighting.app.resume import refuse_without_effect, typed_options
from ssl_weighting.app.runs import OWN
from ssl_weighting.app.trained import GIVEN, TrainedModel, check_reject, restored
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

SETS = ("unlabeled", "validation", "test")
HELP = {
    "predict": """\
usage: ssl-weighting predict RUN [--on FOLDER|TABLE|SET] [--out FILE.csv|FILE.parquet] [--reject P]

Class probabilities, by the model of a run, of new images or texts, or of a set of the run: unlabeled, validation, test
(default: test, if there is one). New examples need no labels, and nothing of the data that the run was trained on.
Where the run has own_probability, how likely an example is of one of the classes, the table has it too, and --reject 0.5
gives those below no class.""",
    "test": """\
usage: ssl-weighting test RUN

The error of a run's model on its test set.""",
    "validate": """\
usage: ssl-weighting validate RUN

The error of a run's model on its validation examples.""",
}
RUN = """

  RUN              a run's folder, a folder that holds one run, or a checkpoint file"""
DEVICE = """
  --device NAME    where to compute, such as cpu or cuda:1 (default: a GPU, if there is one)"""
MORE = """
  --data.KEY VALUE, --model.KEY VALUE    an option other than the run's, such as --data.root of data that were moved"""


class Asked(NamedTuple):
    """A command line, read.

    Attributes:
        run: The run, as it was typed.
        own: Options of these commands, by name.
        overrides: Options of ``data`` and ``model``.
    """

    run: str
    own: dict[str, str]
    overrides: list[str]


@dataclass(frozen=True)
class Chosen:
    """Examples that were asked for, with the model of the run.

    Attributes:
        model: The model; its data module has the m examples that could be read.
        part: Under which name.
        index: (n,) int64, numbers of the examples where they come from.
        rows: (m,) int64, rising, which of the n could be read.
        names: What a person knows some of the n by.
        beside: The run's folder.
        name: Of the list, the folder or the table.
    """

    model: TrainedModel
    part: str
    index: Tensor
    rows: Tensor
    names: Callable[[slice], list[str]]
    beside: Path
    name: str

    @property
    def size(self) -> int:
        """N."""
        return len(self.index)

    def unread(self) -> str:
        """What is said of those that could not be read, if there are any."""
        number = self.size - len(self.rows)
        return f", {number} of them could not be read" if number else ""


def predict(argv: list[str]) -> int:
    """Write the class probabilities of new examples, or of a list of the run's.

    Args:
        argv: ``RUN [--on WHAT] [--out FILE] [--reject P]`` and options of the run.

    Returns:
        0.

    Raises:
        UserError: On bad input.
    """
    asked = read_command("predict", HELP["predict"], argv, ("on", "out", "reject", "device"))
    if asked is None:
        return 0
    out = home_path(asked.own["out"]) if "out" in asked.own else None
    if out is not None:
        check_out(out)
    saved = opened(asked)
    reject = _reject(asked, saved)
    chosen = choose(asked, saved)
    probabilities, own = chosen.model.of_part_with_own(chosen.part)
    names, classes = chosen.names(slice(None)), chosen.model.class_names
    table = predictions_table(chosen.index, names, chosen.rows, probabilities, classes, own, reject)
    if out is None:
        out = write_beside(table, chosen.beside / f"predictions-{chosen.name}.parquet")
    else:
        write_predictions(table, out)
    print(f"{out}: {chosen.size} examples{chosen.unread()}{_rejected(own, reject)}")
    return 0


def _reject(asked: Asked, saved: Saved) -> float:
    """The least ``own_probability`` that gets a class; 0 if nothing is to be rejected."""
    given = asked.own.get("reject")
    if given is None:
        return 0.0
    try:
        reject = float(given)
    except ValueError:
        raise UserError(f"--reject {given}: is no number; give --reject 0.5") from None
    check_reject(reject, "--reject", saved.belonging)
    return reject


def _rejected(own: np.ndarray | None, reject: float) -> str:
    """What is said of those that got no class."""
    if own is None or not reject:
        return ""
    return f", {(own < reject).sum()} rejected: their {OWN} is below {reject:g}"


def opened(asked: Asked) -> Saved:
    """The checkpoint of the run that was asked for.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    return open_checkpoint(find_checkpoint(asked.run), f"RUN={asked.run}")


def choose(asked: Asked, saved: Saved) -> Chosen:
    """The model of a run, and what ``--on`` names: a list of the run's, or new examples.

    Raises:
        UserError: If there is no such list or folder.
    """
    beside = saved.run or saved.path.resolve().parent
    on = asked.own.get("on") or ("test" if saved.own["memory"]["has_test"] else "unlabeled")
    if on in SETS:
        model = _prepared(saved, asked, on)
        part = model.data.sets[on]
        if Path(on).exists():
            print(f"--on {on}: the run's own list; --on ./{on} is the folder of that name", file=sys.stderr)
        return Chosen(model, on, part.rows, torch.arange(len(part)), part.describe, beside, on)
    model = _prepared(saved, asked, None)
    new = model.read(on, "--on")
    model.give(new.source, torch.arange(len(new.rows)))
    where = home_path(on).resolve()
    name = where.name if where.is_dir() else where.name.split(".")[0]
    return Chosen(model, GIVEN, torch.arange(len(new.names)), new.rows, new.names.__getitem__, beside, name)


def test(argv: list[str]) -> int:
    """Print the error on the test set; see :func:`predict`."""
    return _error("test", argv, "test", "test")


def validate(argv: list[str]) -> int:
    """Print the error on the validation examples; see :func:`predict`."""
    return _error("validate", argv, "validation", "validation")


def _error(command: str, argv: list[str], part: str, name: str) -> int:
    asked = read_command(command, HELP[command], argv, ("device",))
    if asked is None:
        return 0
    model = _prepared(opened(asked), asked, part)
    labels = model.data.sets[part].labels
    if not len(labels):
        raise UserError(
            f"RUN={asked.run}: no label was kept aside (data.num_validation=0); type ssl-weighting test {asked.run}"
        )
    wrong = (model.of_part(part).argmax(-1) != labels).float().mean()
    print(f"{name} error: {100 * float(wrong):.2f} %")
    return 0


def _prepared(saved: Saved, asked: Asked, part: str | None) -> TrainedModel:
    """The model, and its data where a list of them is asked for; says what is not as in the run."""
    with_training_data = part in ("unlabeled", "validation")
    model, changes = restored(saved, asked.overrides, with_training_data, asked.own.get("device"))
    say_changes(changes)
    if part is None:
        return model
    data, own = model.data, saved.own
    if data.split_seed is None:
        data.split_seed = own["seed"]
    kept = saved.run / "split.json" if saved.run else None
    typed = {key: str(new) for key, (_, new) in changes.items()}
    if "data.split" not in typed_options(asked.overrides) and kept is not None and kept.is_file():
        data.split_file = kept
        if with_training_data:
            refuse_without_effect(typed, kept, "give --data.split FILE")
    data.evaluate_test = False
    data.prepare_data()
    data.setup("test" if part == "test" else "validate")
    if with_training_data and data.split is not None and data.split.sha256() != own["split_sha256"]:
        raise UserError(
            f"RUN={asked.run}: was trained on another split of the data; give the run's own with --data.split FILE, a "
            "split.json"
        )
    return model


def say_changes(changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Say which options are not those of the run: old value, new value."""
    if changes:
        print(f"not as in the run: {summarised(changes)}", file=sys.stderr)


def read_command(command: str, usage: str, argv: Sequence[str], own: Sequence[str]) -> Asked | None:
    """Read the command line; ``None`` if help was asked for and given.

    Args:
        command: Its name.
        usage: Its help, without the options that all these commands take.
        argv: What was typed after it.
        own: Options that it takes besides those of ``data`` and ``model``.

    Raises:
        UserError: If it is not understood; says what to type.
    """
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(usage + RUN + (DEVICE if "device" in own else "") + MORE)
        return None
    runs: list[str] = []
    options: dict[str, str] = {}
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            runs.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            found = next(words, None)
            if found is None:
                raise UserError(f"--{key}: a value has to follow; `ssl-weighting {command} --help`")
            value = found
        if key in options:
            raise UserError(f"--{key} {value}: given before, as {options[key]}; give it once")
        if key in own:
            options[key] = value
        elif key.startswith(("data.", "model.")) or key in ("data", "model"):
            overrides += [f"--{key}", value]
        else:
            raise UserError(_no_such_option(command, key, value, own))
    if len(runs) != 1:
        what = f"{len(runs)} runs are given ({', '.join(runs)})" if runs else "no run is given"
        raise UserError(f"{command}: {what}; type ssl-weighting {command} RUN, the folder that fit printed")
    return Asked(runs[0], options, overrides)


def _no_such_option(command: str, key: str, value: str, own: Sequence[str]) -> str:
    """What to type instead of an option that these commands do not take."""
    if key == "ckpt_path":
        path = Path(value)
        run = path.parents[1] if path.parent.name == "checkpoints" else path
        return f"--ckpt_path {value}: {command} takes the run itself: ssl-weighting {command} {run}"
    if key in ("config", "c"):
        return f"--{key} {value}: a run knows its own configuration: ssl-weighting {command} RUN"
    if key.startswith(("trainer.", "checkpoint.")) or key in ("runs", "seed_everything"):
        return f"--{key}: is for training; leave it out (--device says where to compute)"
    known = ", ".join(f"--{name}" for name in (*own, "data.KEY", "model.KEY"))
    return f"--{key}: no such option; {command} takes {known}"
