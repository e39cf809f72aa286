"""``python -m lab study``: a declared grid of runs, each kept when finished and skipped the next time."""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lab.cells import CIRCUMSTANCES, Cell, Study, matches, parse_seeds, read_study
from lab.records import figures_of
from ssl_weighting.app.threads import free_cores
from ssl_weighting.errors import NonFiniteError, UserError
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


def run_folder(out: Path, cell: Cell, seed: int) -> Path:
    """Where a run is kept."""
    return out / "runs" / f"{cell.settings()}_seed{seed}"


def train(cell: Cell, seed: int, folder: Path) -> float:
    """One run, in this process. A killed one goes on from its checkpoint.

    Returns:
        Its seconds.
    """
    from ssl_weighting.app.cli import run_lightning

    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["fit", "--config", cell.recipe, "--seed_everything", str(seed), "--runs", str(folder)]
    arguments += ["--trainer.enable_progress_bar=false"]
    arguments += [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in cell.overrides.items()]
    checkpoints = sorted(folder.glob("*/*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if checkpoints:
        arguments += ["--ckpt_path", str(checkpoints[-1])]
    started = time.monotonic()
    with (
        open(folder / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            made = run_lightning(arguments)
        except Exception:
            traceback.print_exc(file=log)
            raise
    assert made is not None
    seconds = time.monotonic() - started
    for name in KEPT:
        if (made / name).is_file():
            shutil.copy2(made / name, folder / name)
    facts = {"commit": commit(), "arguments": arguments}
    with whole_file(folder / "run.json") as partial:  # its presence says that the run is finished
        partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(made.parent)
    return seconds


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


def _start_worker() -> None:
    """Import what runs need once, and end with the parent, however that ends.

    One thread whatever ``--jobs``: the number of threads changes how sums are rounded.
    """
    import torch

    from ssl_weighting.app.cli import run_lightning  # noqa: F401

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the study's table, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for last in ("seconds", "commit", "folder"):
        columns.append(columns.pop(columns.index(last)))
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


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
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
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
    except BrokenProcessPool:
        raise UserError(
            f"--jobs {options.jobs}: a run was killed from outside (too little memory for so many?); "
            "the same command goes on"
        ) from None


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
    todo = {run_folder(out, cell, seed): (cell, seed) for seed in seeds for cell in cells}
    missing = {folder: run for folder, run in todo.items() if not (folder / "run.json").is_file()}
    spent: dict[str, list[float]] = {}
    for row in rows_of(study, out, every):
        if row["seconds"]:
            spent.setdefault(row["settings"], []).append(row["seconds"])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    failed = 0
    pool = ProcessPoolExecutor(
        min(jobs, max(1, len(missing))), multiprocessing.get_context("spawn"), _start_worker
    )
    with Progress(*columns) as progress:
        say = progress.console.print
        say(f"{study.description}\n{len(todo) - len(missing)} of {len(todo)} runs are there", highlight=False)
        bar = progress.add_task(study.name, total=len(todo), completed=len(todo) - len(missing), left="")
        futures = {pool.submit(train, *run, folder): (folder, run) for folder, run in missing.items()}
        try:
            for future in as_completed(futures):
                folder, (cell, seed) = futures.pop(future)
                try:
                    seconds = future.result()
                except NonFiniteError as error:
                    failed += 1
                    say(f"[red]failed[/]  {cell}  seed {seed}: {error}  ({folder}/log.txt)", highlight=False)
                    continue
                spent.setdefault(cell.settings(), []).append(seconds)
                write_rows(rows_of(study, out, every), out / "runs.csv")
                left = _left([c for _, (c, _) in futures.values()], spent, jobs)
                progress.update(bar, advance=1, left=left)
                figures = _figures(folder)
                share = figures.get("test_error", figures["validation_error"])
                say(
                    f"{len(todo) - len(futures)}/{len(todo)}  {cell}  seed {seed}  error {100 * share:.2f} %  "
                    f"({seconds:.0f} s; {left})",
                    highlight=False,
                )
        finally:
            _end(pool)
    rows = rows_of(study, out, every)
    if rows:
        write_rows(rows, out / "runs.csv")
        say(f"table: {out / 'runs.csv'}", highlight=False)
    return 1 if failed else 0


def _left(cells: list[Cell], spent: dict[str, list[float]], jobs: int) -> str:
    """Time left: runs of the same settings take as long as they did."""
    everything = [s for seconds in spent.values() for s in seconds]
    means = {settings: sum(seconds) / len(seconds) for settings, seconds in spent.items()}
    overall = sum(everything) / len(everything)
    seconds = sum(means.get(cell.settings(), overall) for cell in cells) / jobs
    hours, minutes = divmod(round(seconds / 60), 60)
    return (
        f"{hours} h {minutes:02d} min left"
        if hours
        else f"{minutes} min left"
        if minutes
        else f"{seconds:.0f} s left"
    )


def _end(pool: ProcessPoolExecutor) -> None:
    """Wait for nobody: runs under way go on from their checkpoints the next time."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)
