"""``python -m lab study``: a declared grid of runs, each kept when finished and skipped the next time."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from lab.cells import CIRCUMSTANCES, Cell, Study, matches, parse_seeds, read_study
from lab.grid import run_grid, write_rows
from lab.records import figures_of
from ssl_weighting.app.threads import free_cores
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

KEPT = (
    "config.yaml",
    "split.json",
    "metrics.csv",
    "weights.parquet",
    "weights_history.csv",
    "timing.json",
    "boundary.npz",
)
LAST = ("seconds", "commit", "folder")


def run_folder(out: Path, cell: Cell, seed: int) -> Path:
    """Where a run is kept."""
    return out / "runs" / f"{cell.settings()}_seed{seed}"


def train(cell: Cell, seed: int, folder: Path) -> None:
    """One run, in this process. A killed one goes on from its checkpoint."""
    from ssl_weighting.app.cli import run_lightning

    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["fit", "--config", cell.recipe, "--seed_everything", str(seed), "--runs", str(folder)]
    arguments += ["--trainer.enable_progress_bar=false"]
    arguments += [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in cell.overrides.items()]
    checkpoints = sorted(folder.glob("*/*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if checkpoints:
        arguments += ["--ckpt_path", str(checkpoints[-1])]
    with (
        open(folder / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            made = run_lightning(arguments)
        except Exception as error:
            traceback.print_exc(file=log)
            error.add_note(log.name)
            raise
    assert made is not None
    for name in KEPT:
        if (made / name).is_file():
            shutil.copy2(made / name, folder / name)
    facts = {"commit": commit(), "arguments": arguments}
    with whole_file(folder / "run.json") as partial:  # its presence says that the run is finished
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(made.parent)


def commit() -> str:
    """The commit of the checkout, with ``+`` where the package was changed since; else the package's version."""
    from ssl_weighting import __version__

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + (
            "+" if git("status", "--porcelain", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__


def rows_of(study: Study, out: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for every finished run of the study, in its order."""
    rows = []
    for cell, seed in itertools.product(study.cells, seeds):
        folder = run_folder(out, cell, seed)
        if (folder / "run.json").is_file():
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            rows.append(
                {"study": study.name, "control": study.control, "arm": cell.arm}
                | {f"factor.{name}": level for name, level in cell.levels.items()}
                | {"seed": seed, "settings": cell.settings()}
                | _figures(folder)
                | {"commit": facts["commit"], "folder": f"runs/{folder.name}"}
            )
    return rows


@cache
def _figures(folder: Path) -> dict[str, Any]:
    return figures_of(folder)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two studies in one folder would write the same files."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--out {out}: another study runs in this folder; wait for it, or name another"
            ) from None
        yield


# ---- the command -------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Make the runs of a study that are missing, two at a time, and write their table.

    Args:
        argv: The study's file; ``--out DIR`` (default ``runs/studies/<name>``), ``--jobs N``, ``--only ARM`` or
            ``--only FACTOR=LEVEL`` (may be repeated), ``--seeds 0..2``, and options of ``fit`` for all runs.

    Returns:
        0; 1 if a run failed.

    Raises:
        UserError: On bad input, before anything is trained, or as soon as a run refuses its settings.
    """
    parser = argparse.ArgumentParser(prog="python -m lab study", description=__doc__, allow_abbrev=False)
    parser.add_argument("study", type=Path, help="lab/studies/NAME.yaml")
    parser.add_argument("--out", type=Path, help="folder to keep runs in (default runs/studies/NAME)")
    parser.add_argument(
        "--jobs", type=int, default=free_cores(), help="runs side by side (default: one a core)"
    )
    parser.add_argument(
        "--only", action="append", default=[], help="this ARM, or FACTOR=LEVEL; may be repeated"
    )
    parser.add_argument("--seeds", help="in place of the file's: a number, a range 0..2, or a list 0,4")
    options, unknown = parser.parse_known_args(argv)
    more = _options(unknown)
    if options.out is None and set(more) - set(CIRCUMSTANCES):
        raise UserError(
            f"--{min(set(more) - set(CIRCUMSTANCES))}: makes another study of it; name its folder, --out DIR"
        )
    study = read_study(options.study, more)
    out = options.out or Path("runs") / "studies" / study.name
    seeds = parse_seeds(study.seeds if options.seeds is None else _number_or_text(options.seeds))
    wanted = [dict([o.split("=", 1)]) if "=" in o else {"arm": o} for o in options.only]
    cells = [cell for cell in study.cells if all(matches(cell, want) for want in _grouped(wanted, cell))]
    if not cells:
        raise UserError(
            f"--only {' '.join(options.only)}: nothing in {options.study} has that; it has {_names(study)}"
        )
    try:
        with _alone(out):
            return _run(study, cells, seeds, out, options.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def _number_or_text(text: str) -> Any:
    return int(text) if text.isdigit() else text


def _grouped(wanted: list[dict[str, str]], cell: Cell) -> list[dict[str, str]]:
    """Of several values of one name, that of the cell, if it is among them: within a name, any will do."""
    names = {next(iter(want)): want for want in wanted}
    return [next((w for w in wanted if name in w and matches(cell, w)), names[name]) for name in names]


def _names(study: Study) -> str:
    arms = ", ".join(dict.fromkeys(cell.arm for cell in study.cells))
    levels = dict.fromkeys(f"{k}={v}" for cell in study.cells for k, v in cell.levels.items())
    return ", ".join((arms, *levels))


def _options(unknown: list[str]) -> dict[str, Any]:
    """``--key value`` and ``--key=value`` as options for all runs."""
    found: dict[str, Any] = {}
    rest = iter(unknown)
    for argument in rest:
        key, equals, value = argument.partition("=")
        given = value if equals else next(rest, None)
        if not key.startswith("--") or given is None:
            raise UserError(f"{argument}: not an option with its value; `python -m lab study --help`")
        found[key[2:]] = yaml.safe_load(given)
    return found


def _run(study: Study, cells: list[Cell], seeds: list[int], out: Path, jobs: int) -> int:
    every = list(dict.fromkeys([*study.seeds, *seeds]))
    names = {cell.settings(): str(cell) for cell in [*study.cells, *cells]}
    runs = {
        (names[cell.settings()], f"seed {seed}"): (cell, seed, run_folder(out, cell, seed))
        for seed in seeds
        for cell in cells
    }
    rows = rows_of(study, out, every)
    finished = {(names[row["settings"]], f"seed {row['seed']}"): row["seconds"] or 0.0 for row in rows}

    def keep(key: tuple[str, str], _: None) -> str:
        write_rows(rows_of(study, out, every), out / "runs.csv", LAST)
        figures = _figures(runs[key][2])
        error = figures.get("test_error", figures.get("validation_error"))
        return "no error" if error is None else f"error {100 * error:.2f} %"

    print(study.description)
    failed = run_grid({key: partial(train, *run) for key, run in runs.items()}, finished, keep, jobs)
    rows = rows_of(study, out, every)
    if rows:
        write_rows(rows, out / "runs.csv", LAST)
        print(f"table: {out / 'runs.csv'}")
    return 1 if failed else 0
