"""``ssl-weighting resume``, or ``fit --ckpt_path``: a run goes on, with its own configuration."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssl_weighting.app.checkpoints import find_checkpoint, open_checkpoint
from ssl_weighting.app.launch import agreed
from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import UserError
from ssl_weighting.resumption import BEGUN

HELP = """\
usage: ssl-weighting resume RUN [--key value ...]

Goes on with a run that was stopped, exactly, in its own folder and with its own configuration. An option of fit that is
given wins, and is said: --trainer.max_steps 2000 trains longer. RUN is the run's folder, a folder that holds one run, or
one of its checkpoints."""


FIXED = ("seed_everything", "model.weighting.weights", *(f"model.{name}" for name in BEGUN))
"""Options that a run is begun with once and for all."""


class Resumed(NamedTuple):
    """A run that goes on.

    Attributes:
        checkpoint: Where from.
        directory: The run's folder.
        configuration: What it was trained with so far.
        step: θ steps made so far.
    """

    checkpoint: Path
    directory: Path
    configuration: dict[str, Any]
    step: int


def main(argv: list[str]) -> int:
    """Go on with a run.

    Args:
        argv: ``RUN`` and options of ``fit``.

    Returns:
        0.

    Raises:
        UserError: On bad input.
    """
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(HELP)
        return 0
    if argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: the run comes first: ssl-weighting resume RUN {argv[0]} ...")
    from ssl_weighting.app.cli import run_lightning

    run_lightning(["fit", "--ckpt_path", argv[0], *argv[1:]])
    return 0


def resumed(given: str, runs: Path, recipe: str, seed: str | None) -> Resumed:
    """The run that ``fit --ckpt_path`` names.

    Args:
        given: ``last`` or ``previous``, of the newest run of the recipe and seed; a run's folder; a checkpoint.
        runs: Folder that run folders go into.
        recipe: Name of the recipe.
        seed: The seed that was typed, if one was.

    Raises:
        UserError: If there is no such run.
    """

    def decide() -> str:
        named = given in ("last", "previous")
        return str(_newest(runs, recipe, given, seed) if named else find_checkpoint(given))

    path = Path(agreed("checkpoint", decide))
    saved = open_checkpoint(path, f"ckpt_path={given}")
    if saved.run is None:
        raise UserError(
            f"ckpt_path={given}: lies in no run's folder; a run goes on in its own: ssl-weighting resume RUN"
        )
    kept = saved.run / "config.yaml"
    configuration = yaml.safe_load(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    return Resumed(path, saved.run, configuration or saved.configuration, saved.step)


def _newest(runs: Path, recipe: str, name: str, seed: str | None) -> Path:
    """``last.ckpt``, or ``previous.ckpt``, of the run of a recipe, and seed, that saved last."""
    if not recipe:
        raise UserError(
            f"ckpt_path={name}: of which recipe? Give --config too, or type ssl-weighting resume RUN"
        )
    found = sorted(
        (runs / recipe).glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True
    )
    of_seed = [p for p in found if seed is None or f"_seed{seed}_" in p.parents[1].name]
    if not of_seed:
        of = f"{recipe} and seed {seed}" if found else recipe
        raise UserError(
            f"ckpt_path={name}: no run of {of} under {runs} has a checkpoint; start one without --ckpt_path"
        )
    return of_seed[0].with_name(f"{name}.ckpt")


def say_complete(run: Resumed, steps: int, typed: bool) -> None:
    """Say that a run has made all of its θ steps and is only evaluated.

    Args:
        run: The run.
        steps: θ steps to train in all.
        typed: Whether somebody typed ``steps``.

    Raises:
        UserError: If fewer steps are typed than the run has made.
    """
    hint = f"ssl-weighting resume {shlex.quote(str(run.directory))} --trainer.max_steps {2 * run.step}"
    said = f"the run is complete at step {run.step} and nothing is left to train; {hint} trains longer"
    if typed and steps < run.step:
        raise UserError(f"trainer.max_steps={steps}: {said}")
    if is_first_process():
        print(f"resume: {said}; evaluated as it is", file=sys.stderr, flush=True)


def say_resumed(run: Resumed, recipe: str, changes: str) -> None:
    """One line: what goes on, with whose configuration, and what was changed."""
    if not is_first_process():
        return
    read = f"; the recipe {recipe} is not read again" if recipe else ""
    changed = f"; changed from here on: {changes}" if changes else ""
    print(
        f"resume: {run.directory} goes on at step {run.step} with its own configuration{read}{changed}",
        file=sys.stderr,
        flush=True,
    )


def refuse_changes(run: Resumed, changes: dict[str, tuple[Any, Any]]) -> None:
    """Refuse what cannot change within a run.

    Raises:
        UserError: Naming the option.
    """
    for key in FIXED:
        if key in changes:
            old, new = changes[key]
            raise UserError(
                f"{key}={new}: the run {run.directory} was begun with {old}, and goes on with it; leave it out, or start "
                "a new run with fit"
            )


def refuse_without_effect(typed: Mapping[str, str], split: Any, hint: str) -> None:
    """Refuse options that draw a split where a file says what it is.

    Args:
        typed: Options of the command line.
        split: The file.
        hint: What else to type.

    Raises:
        UserError: Naming the first, and what to do.
    """
    for key in ("num_labeled", "num_validation", "num_unlabeled", "foreign_fraction", "split_seed"):
        if f"data.{key}" in typed and typed[f"data.{key}"] != "null":
            raise UserError(
                f"data.{key}={typed[f'data.{key}']}: has no effect, for data.split={split} says which examples are "
                f"labelled, validate and are unlabelled; leave it out, or {hint}"
            )


def typed_options(argv: Sequence[str]) -> dict[str, str]:
    """Options of a command line and their values; the last of each."""
    found: dict[str, str] = {}
    for position, word in enumerate(argv):
        if not word.startswith("-"):
            continue
        option, equals, value = word.lstrip("-").partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else ""
        found[option] = value if equals else following
    return found
