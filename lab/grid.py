"""Grids of jobs: each is made once, kept as soon as it is finished, and passed over when the command is given again."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ssl_weighting.app.side_by_side import side_by_side
from ssl_weighting.app.threads import free_cores
from ssl_weighting.errors import NonFiniteError, UnsolvedError, UserError
from ssl_weighting.files import whole_file

T = TypeVar("T")
K = TypeVar("K", bound=tuple[str, ...])
Row = dict[str, Any]


def run_grid(
    jobs: Mapping[K, Callable[[], T]],
    finished: Mapping[Any, float],
    keep: Callable[[K, T], str],
    processes: int,
) -> int:
    """Run the jobs that are not finished, and say how far it is and how long it will take.

    Args:
        jobs: What to call, to be pickled. Jobs whose keys differ in the last part alone, a seed, take equally long.
        finished: Keys that are passed over, with their seconds, or 0 where nobody knows. May hold others' too.
        keep: Called here with what a job returned, as soon as it ends. Returns what to say of it.
        processes: Jobs side by side, one thread each.

    Returns:
        How many jobs failed: something was not finite, or equations had no solution. Each has been said.

    Raises:
        UserError: As soon as a job refuses its settings, or is killed.
    """
    seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for key, taken in finished.items():
        if taken:
            seconds[key[:-1]].append(taken)
    missing = {key: partial(_timed, job) for key, job in jobs.items() if key not in finished}
    total, failed = len(jobs), 0
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns) as progress, side_by_side(missing, processes, "--jobs") as ended:
        say = partial(progress.console.print, highlight=False, markup=False, soft_wrap=True)
        say(f"{total - len(missing)} of {total} runs are there")
        bar = progress.add_task("", total=total, completed=total - len(missing), left="")
        for key, future in ended:
            del missing[key]
            try:
                taken, made = future.result()
            except (NonFiniteError, UnsolvedError) as error:
                failed += 1
                notes = getattr(error, "__notes__", [])
                say("failed", "  ".join(key), ": ".join((str(error), *notes)), sep="  ", style="red")
                continue
            seconds[key[:-1]].append(taken)
            said = keep(key, made)
            left = _left(missing, seconds, processes)
            progress.update(bar, advance=1, left=left)
            say(
                f"{total - len(missing)}/{total}", *key, *filter(None, [said]), f"({taken:.0f} s; {left})",
                sep="  ",
            )  # fmt: skip
        if failed:
            say(f"{failed} of {total} failed; the same command tries them again", style="red")
    return failed


def _timed(job: Callable[[], T]) -> tuple[float, T]:
    started = time.monotonic()
    made = job()
    return time.monotonic() - started, made


def _left(keys: Iterable[tuple[str, ...]], spent: dict[tuple[str, ...], list[float]], processes: int) -> str:
    """Time left: jobs of one kind take as long as they did, and others as long as these."""
    overall = list(chain.from_iterable(spent.values()))
    seconds = sum(mean(spent.get(key[:-1], overall)) for key in keys) / processes
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02d} min left"
    return f"{minutes} min left" if minutes else f"{seconds:.0f} s left"


# ---- rows in a file ----------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV or JSON file; none if there is no such file.

    Raises:
        UserError: If it is damaged. Rows are written whole (:func:`write_rows`), so no killed grid leaves half of one.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return list(json.loads(text))
    rows: list[Row] = list(csv.DictReader(text.split("\n")))
    half = rows[-1:] if not text.endswith("\n") else []
    for row in (*half, *rows):
        if row in half or None in row or None in row.values():
            shown = ",".join(str(value) for value in row.values() if value is not None)
            raise UserError(f"{path}: {shown} is not a whole row; delete that line, and others of its run")
    return rows


def write_rows(rows: list[Row], path: Path, last: Sequence[str] = ()) -> None:
    """Write rows as CSV, or as JSON if the name ends so; the file is there whole or as it was before.

    Args:
        rows: Not every one needs to have every column.
        path: The file.
        last: Columns to put last.
    """
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name in last)
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(rows, file, indent=1)
            return
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def grid_options(description: str | None, file: str = "--out") -> argparse.ArgumentParser:
    """Options of a script that makes rows: the file they go into, and how many runs at once.

    Args:
        description: The head of the script.
        file: The option that names the file.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(file, type=Path, dest="out", help="file of rows; what is in it is not made again")
    parser.add_argument("--jobs", type=int, default=free_cores(), help="runs at once (default: one a core)")
    return parser


def make_rows(
    jobs: Mapping[K, Callable[[], list[Row]]], columns: Sequence[str], options: argparse.Namespace
) -> list[Row]:
    """Make the rows of a grid that are missing, each run's kept as it ends, for a script of :func:`grid_options`.

    Args:
        jobs: What makes the rows of each run, but for its key.
        columns: Names for the parts of a key; they come first.
        options: ``out`` and ``jobs``.

    Returns:
        All rows of these jobs, in their order.

    Raises:
        SystemExit: 1 if a run failed, 2 after bad input, 130 after an interrupt.
    """
    places = {key: place for place, key in enumerate(jobs)}
    path: Path | None = options.out

    def key_of(row: Row) -> Any:
        return tuple(row.get(name) for name in columns)

    def keep(key: K, made: list[Row]) -> str:
        # Read anew: another command may have added to the same file. Rows of other grids stay in front.
        rows[:] = read_rows(path) if path else rows
        rows.extend(dict(zip(columns, key, strict=True)) | row for row in made)
        rows.sort(key=lambda row: places.get(key_of(row), -1))
        if path:
            write_rows(rows, path)
        return ""

    try:
        rows = read_rows(path) if path else []
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        failed = run_grid(jobs, dict.fromkeys(map(key_of, rows), 0.0), keep, options.jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"interrupted; {'the same command goes on' if path else 'nothing is kept'}", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        raise SystemExit(1)
    return [row for row in rows if key_of(row) in places]
