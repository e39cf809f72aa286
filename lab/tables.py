"""Tables of several runs, shaped as in the paper: methods down, label counts or other factors across."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from lab.figures import write_figures
from lab.grid import write_rows
from lab.records import LAST, Record, error_of, has_medians, parts_of, read_records
from ssl_weighting.files import whole_file

POOL = {
    "right_auroc_weight": "λ, right against wrong pseudo-labels",
    "right_auroc_confidence": "confidence, right against wrong pseudo-labels",
    "worst_right_auroc_weight": "λ, right against wrong pseudo-labels, when most of them were wrong",
    "worst_right_auroc_confidence": "confidence, right against wrong pseudo-labels, when most of them were wrong",
    "own_auroc_weight": "λ, known against foreign classes",
    "own_auroc_confidence": "confidence, known against foreign classes",
    "own_auroc_score": "the method's own score at the end, known against foreign classes",
}
PROBE = "labels_only_test_error"
WIDE = 6
Levels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, standard deviation (n − 1; 0 for one seed) and number."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}" if self.n > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class Difference:
    """A paired difference to the control: mean, limits of its interval (NaN for one pair) and number of pairs."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]" if self.n > 1 else f"{self.mean:+.2f}"


def spread(values: list[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def paired_difference(values: list[float], control: list[float], level: float = 0.95) -> Difference:
    """Differences values − control, pair by pair, with Student's t interval.

    Args:
        values: At least one.
        control: As many, in the same order.
        level: Coverage of the interval.
    """
    found = spread([v - c for v, c in zip(values, control, strict=True)])
    if found.n == 1:
        return Difference(found.mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf((1 + level) / 2, found.n - 1)) * found.std / math.sqrt(found.n)
    return Difference(found.mean, found.mean - half, found.mean + half, found.n)


def main(argv: list[str]) -> int:
    """Write tables and figures over runs.

    Args:
        argv: ``RUN [RUN …] --out DIR``; a RUN is a run's folder, or a study's folder or CSV file.

    Returns:
        0.

    Raises:
        UserError: See :func:`write_tables`.
    """
    parser = argparse.ArgumentParser(prog="python -m lab tables", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's or a study's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    options = parser.parse_args(argv)
    write_tables(options.runs, options.out)
    return 0


def write_tables(runs: list[Path], out: Path) -> None:
    """Write, for every study among the runs, ``<study>.md``, ``<study>.csv`` and its figures.

    Errors are in per cent: the median of the last 20 evaluations where all runs were evaluated that often, else the
    last one. Differences are taken between runs of the same seed, and so of the same split.

    Args:
        runs: Folders of runs, and folders or CSV files of studies.
        out: Folder to write to; made if need be.

    Raises:
        UserError: If a path holds no run, or if runs of different splits, budgets or settings would be averaged.
    """
    records = read_records(runs)
    out.mkdir(parents=True, exist_ok=True)
    for study in dict.fromkeys(record.study for record in records):
        mine = [record for record in records if record.study == study]
        name = study or "runs"
        with whole_file(out / f"{name}.md") as partial:
            partial.write_text(markdown(mine), encoding="utf-8")
        _write_csv(mine, out / f"{name}.csv")
        write_figures(mine, out, name)


def by_cell(records: list[Record]) -> dict[tuple[str, Levels], list[Record]]:
    """Runs that differ in the seed alone, in order of appearance."""
    cells: dict[tuple[str, Levels], list[Record]] = {}
    for record in records:
        cells.setdefault((record.arm, tuple(record.levels.items())), []).append(record)
    return cells


def differences(
    records: list[Record], value: Callable[[Record], float]
) -> dict[tuple[str, Levels], Difference]:
    """Every cell against the control, on the same splits."""
    cells, found = by_cell(records), {}
    for (arm, levels), mine in cells.items():
        control = mine[0].control
        there = _control_of(cells, control, levels)
        by_split = {(r.seed, r.figures["split"], r.figures["steps"]): r for r in there}
        pairs = [(r, by_split.get((r.seed, r.figures["split"], r.figures["steps"]))) for r in mine]
        both = [(value(r), value(c)) for r, c in pairs if c is not None]
        if both and (arm != control or there is not mine):
            found[arm, levels] = paired_difference([v for v, _ in both], [c for _, c in both])
    return found


def _control_of(cells: dict[tuple[str, Levels], list[Record]], control: str, levels: Levels) -> list[Record]:
    """The control's runs at these levels; of a factor at one level of which alone it ran, the level is no matter."""
    ran = {there: kept for (arm, there), kept in cells.items() if arm == control}
    everywhere = set.intersection(*(set(there) for there in ran)) if ran else set()
    return next((kept for there, kept in ran.items() if set(there) - everywhere <= set(levels)), [])


def markdown(records: list[Record]) -> str:
    """All tables of a study's runs, as Markdown."""
    cells = by_cell(records)
    parts = [f"# {records[0].study or 'Runs'}", _circumstances(records)]
    for part in parts_of(records):
        median = has_medians(records, part)

        def value(record: Record, part: str = part, median: bool = median) -> float:
            return error_of(record, part, median)

        which = f"median of the last {LAST} evaluations" if median else "last evaluation"
        parts += [
            f"## {part.capitalize()} error, %\n\nMean ± standard deviation over seeds; {which}.",
            _table({cell: str(spread([value(r) for r in mine])) for cell, mine in cells.items()}, cells),
        ]
        if found := differences(records, value):
            control = " or ".join(f"`{c}`" for c in dict.fromkeys(r.control for r in records))
            parts += [
                f"Less the error of {control} on the same splits, points, with the 95 % interval of the mean (below 0: "
                "better).",
                _table({cell: str(difference) for cell, difference in found.items()}, cells),
            ]
    probes = {
        cell: [100 * r.figures[PROBE] for r in mine if PROBE in r.figures] for cell, mine in cells.items()
    }
    if shown := {cell: str(spread(values)) for cell, values in probes.items() if values}:
        parts += [
            "## Labels only, all of them: test error of a linear probe, %\n\nOn the labels that train and those that "
            "validate, without the pool.",
            _table(shown, cells),
        ]
    for name, title in POOL.items():
        areas = {cell: [r.figures[name] for r in mine if name in r.figures] for cell, mine in cells.items()}
        if shown := {cell: _area(values) for cell, values in areas.items() if values}:
            parts += [f"## Area under the ROC curve: {title}", _table(shown, cells)]
    return "\n\n".join(parts) + "\n"


def _area(values: list[float]) -> str:
    found = spread(values)
    return f"{found.mean:.3f} ± {found.std:.3f}" if found.n > 1 else f"{found.mean:.3f}"


def _circumstances(records: list[Record]) -> str:
    def of(name: str) -> str:
        values = dict.fromkeys(_plain(r.figures[name]) for r in records if name in r.figures)
        return ", ".join(values) or "unknown"

    seeds = len({r.seed for r in records})
    return (
        f"{len(records)} runs, {seeds} {'seed' if seeds == 1 else 'seeds'}; {of('data_set')}; labelled {of('labeled')}, "
        f"validation {of('validation')}, unlabelled {of('unlabeled')} examples; {of('steps')} θ steps; commit "
        f"{of('commit')}."
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def axes_of(cells: Iterable[tuple[str, Levels]]) -> tuple[dict[tuple[str, Levels], str], str]:
    """Rows of a table, arm and all factors but the last, with their names; and the last factor, which goes across."""
    cells = list(cells)
    one_arm = len({arm for arm, _ in cells}) == 1
    rows = {}
    for arm, levels in cells:
        names = [
            *([] if one_arm and levels[:-1] else [arm]),
            *(f"{name} {level}" for name, level in levels[:-1]),
        ]
        rows[arm, levels[:-1]] = ", ".join(names)
    last = next((levels[-1][0] for _, levels in cells if levels), "")
    return rows, last


def _table(shown: dict[tuple[str, Levels], str], cells: Iterable[tuple[str, Levels]]) -> str:
    """Rows down and the last factor across; the other way round where that is the narrower table.

    Args:
        shown: What to write into some of the cells.
        cells: All cells of the study, which name the rows.
    """
    named, factor = axes_of(cells)
    there = {(arm, levels[:-1]) for arm, levels in shown}
    rows = {row: name for row, name in named.items() if row in there}
    columns = list(dict.fromkeys(levels[-1:] for _, levels in shown))
    titles = [column[0][1] if column else "all" for column in columns]
    values = [[shown.get((arm, (*levels, *column)), "") for column in columns] for arm, levels in rows]
    names = list(rows.values())
    if len(columns) > max(WIDE, len(names)):
        names, titles, values = titles, names, [list(column) for column in zip(*values, strict=True)]
    lines = [f"| {factor} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    return "\n".join(lines + [f"| {n} | {' | '.join(v)} |" for n, v in zip(names, values, strict=True)])


def _write_csv(records: list[Record], path: Path) -> None:
    """One row a cell, all figures unrounded."""
    rows = []
    factors = list(dict.fromkeys(name for record in records for name in record.levels))
    found = {}
    for part in parts_of(records):
        median = has_medians(records, part)
        found[part] = differences(records, lambda r, p=part, m=median: error_of(r, p, m))  # type: ignore[misc]
    for (arm, levels), mine in by_cell(records).items():
        row: dict[str, Any] = {
            "arm": arm,
            **dict(levels),
            "seeds": len(mine),
            "steps": mine[0].figures["steps"],
        }
        for part in parts_of(records):
            s = spread([error_of(r, part, has_medians(records, part)) for r in mine])
            row |= {f"{part}_error_mean": s.mean, f"{part}_error_std": s.std}
            if d := found[part].get((arm, levels)):
                row |= {
                    f"{part}_difference": d.mean,
                    f"{part}_low": d.low,
                    f"{part}_high": d.high,
                    "pairs": d.n,
                }
        for name in POOL:
            if values := [r.figures[name] for r in mine if name in r.figures]:
                row |= {f"{name}_mean": spread(values).mean, f"{name}_std": spread(values).std}
        rows.append(row)
    write_rows([dict.fromkeys(["arm", *factors], "") | row for row in rows], path)
