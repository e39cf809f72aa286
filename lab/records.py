"""What runs' folders say: facts and figures, and which runs may be averaged and compared."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_weighting.app.runs import Run
from ssl_weighting.errors import UserError

Curves = dict[str, tuple[np.ndarray, np.ndarray]]
PARTS = ("test", "validation")

LAST = 20
"""Evaluations whose median is reported (Berthelot et al. 2019; the paper, Sec. 4)."""
WEIGHTS = ("mean", "std", "min", "max", "q05", "q25", "q50", "q75", "q95")
POOL = (
    "pseudo_label_error",
    "right_auroc_weight",
    "right_auroc_confidence",
    "own_auroc_weight",
    "own_auroc_confidence",
    "own_auroc_score",
)


def metrics_of_fit(arguments: list[str]) -> Curves:
    """Metrics of a run of ``fit``, whose folder is not kept and which prints nothing.

    Args:
        arguments: After ``fit``.
    """
    from ssl_weighting.app.cli import run_lightning

    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        directory = run_lightning(["fit", *arguments, "--runs", runs])
        assert directory is not None
        return Run(directory).metrics


def figures_of(folder: Path) -> dict[str, Any]:
    """The figures of a finished run.

    Errors are shares in [0, 1]; ``…_median`` is the median of the last 20 evaluations, absent where there were fewer.
    ``labels_only_test_error`` is a linear probe's, on all labels, those that validate among them.
    ``worst_…`` are the pool's figures at the evaluation with the largest error of pseudo-labels since weights moved.
    ``seconds`` are those of training. There is no test error where the data have no test set.

    Raises:
        UserError: If the folder is not a finished run's.
    """
    run = Run(folder)
    curves, wanted = run.metrics, run.config["trainer"]["max_steps"]
    followed = next((curves[f"{part}/error"] for part in reversed(PARTS) if f"{part}/error" in curves), None)
    steps = 0 if followed is None else int(followed[0][-1])
    if steps < wanted:
        raise UserError(
            f"{folder}: the run is not finished, {steps} of {wanted} θ steps; "
            f"ssl-weighting resume {folder} goes on"
        )
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = {
        "split": split["sha256"],
        "data_set": split["data_set"],
        "labeled": len(split["labeled"]),
        "validation": len(split["validation"]),
        "unlabeled": len(split["unlabeled"]),
        "steps": steps,
        "evaluations": 0 if followed is None else len(followed[0]),
    }
    if "baseline/test_error" in curves:
        figures["labels_only_test_error"] = float(curves["baseline/test_error"][1][-1])
    for part in PARTS:
        if f"{part}/error" in curves:
            errors = curves[f"{part}/error"][1]
            figures[f"{part}_error"] = float(errors[-1])
            if len(errors) >= LAST:
                figures[f"{part}_error_median"] = float(np.median(errors[-LAST:]))
    names = {f"weight_{name}": f"weights/{name}" for name in WEIGHTS} | {
        name: f"pool/{name}" for name in POOL
    }
    figures |= {name: float(curves[metric][1][-1]) for name, metric in names.items() if metric in curves}
    return figures | _worst(curves) | {"seconds": run.timing.get("seconds")}


def _worst(curves: Curves) -> dict[str, Any]:
    """The pool's figures when most pseudo-labels were wrong, among the evaluations since weights moved."""
    at = {name: dict(zip(*curves[f"pool/{name}"], strict=True)) for name in POOL if f"pool/{name}" in curves}
    steps = list(at.get("right_auroc_weight", {}))
    if not steps:
        return {}
    step = max(steps, key=at["pseudo_label_error"].__getitem__)
    return {"worst_step": int(step)} | {f"worst_{name}": float(at[name][step]) for name in POOL[:3]}


# ---- several runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One finished run, as tables and figures want it.

    Attributes:
        study: The study that it belongs to; runs given by their own folders have none: "".
        arm: Row of a table.
        levels: Factor → level: columns of a table.
        control: The arm that it is compared to.
        seed: Its seed.
        settings: Fingerprint of all its options but the seed.
        figures: See :func:`figures_of`.
        folder: Where its files are kept, if they are there.
    """

    study: str
    arm: str
    levels: dict[str, str]
    control: str
    seed: int
    settings: str
    figures: dict[str, Any]
    folder: Path | None

    def __str__(self) -> str:
        return ", ".join((self.arm, *(f"{name} {level}" for name, level in self.levels.items())))


def error_of(record: Record, part: str, median: bool) -> float:
    """The error of ``part`` (test or validation) in per cent."""
    return 100 * float(record.figures[f"{part}_error{'_median' if median else ''}"])


def has_medians(records: list[Record], part: str) -> bool:
    """Whether all were evaluated at least 20 times."""
    return all(f"{part}_error_median" in record.figures for record in records)


def parts_of(records: list[Record]) -> list[str]:
    """Of test and validation, those that all have an error of."""
    return [part for part in PARTS if all(f"{part}_error" in record.figures for record in records)]


def read_records(runs: list[Path]) -> list[Record]:
    """Runs from their folders, from a study's folder, or from its CSV.

    Raises:
        UserError: If a path is none of these, or if runs of different splits, budgets or settings would be averaged.
    """
    records = []
    for path in runs:
        table = path / "runs.csv" if path.is_dir() else path
        if table.is_file():
            records += _of_study(table)
        elif (path / "config.yaml").is_file():
            records.append(_of_folder(path))
        else:
            raise UserError(f"{path}: neither a run's folder nor a study's, nor its runs.csv")
    if not records:
        raise UserError(f"{' '.join(map(str, runs))}: no finished run in it")
    check_comparable(records)
    return records


def _of_study(table: Path) -> list[Record]:
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and (lack := {"study", "arm", "control", "seed", "settings", "split", "steps"} - set(rows[0])):
        raise UserError(f"{table}: not the table of a study: no column {', '.join(sorted(lack))}")
    records = []
    for row in rows:
        levels = {k.removeprefix("factor."): v for k, v in row.items() if k.startswith("factor.")}
        folder = table.parent / row.get("folder", "")
        kept = folder if row.get("folder") and (folder / "metrics.csv").is_file() else None
        figures = {k: _number(v) for k, v in row.items() if v != ""}
        seed, settings = int(row["seed"]), row["settings"]
        records.append(
            Record(row["study"], row["arm"], levels, row["control"], seed, settings, figures, kept)
        )
    return records


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _of_folder(folder: Path) -> Record:
    config = dict(Run(folder).config)
    algorithm = config["model"]["algorithm"]["class_path"].rpartition(".")[2]
    weighting = config["model"]["weighting"]["kind"]
    arm = algorithm if algorithm == "Supervised" else f"{algorithm} {weighting}"
    seed = int(config.pop("seed_everything"))
    config.pop("runs", None)
    settings = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    figures = figures_of(folder)
    levels = {"data": str(figures["data_set"]), "labels": str(figures["labeled"])}
    return Record("", arm, levels, f"{algorithm} fixed", seed, settings, figures, folder)


def check_comparable(records: list[Record]) -> None:
    """Refuse to average, or to compare, what differs in more than the seed.

    Raises:
        UserError: Naming the runs.
    """
    cells: dict[Any, Record] = {}
    seeds: dict[Any, Record] = {}
    columns: dict[Any, Record] = {}
    for record in records:
        at = (record.study, *sorted(record.levels.items()))
        first = cells.setdefault((*at, record.arm), record)
        for name, said in (
            ("steps", "budgets (θ steps)"),
            ("data_set", "splits (data set)"),
            ("labeled", "splits (labelled examples)"),
            ("validation", "splits (validation examples)"),
            ("unlabeled", "splits (unlabelled examples)"),
            ("evaluations", "numbers of evaluations"),
        ):
            a, b = first.figures[name], record.figures[name]
            if a != b:
                raise UserError(
                    f"{record}: runs of different {said} are not averaged: {_say(a)} and {_say(b)}"
                )
        if first.settings != record.settings:
            raise UserError(
                f"{record}: runs of different settings are not averaged: seeds {first.seed} and {record.seed}; "
                "compare their config.yaml"
            )
        if seeds.setdefault((*at, record.arm, record.seed), record) is not record:
            raise UserError(f"{record}: seed {record.seed} is there twice; give each run once")
        other = columns.setdefault((*at, record.seed), record)
        for name, said in (("split", "splits"), ("steps", "budgets (θ steps)")):
            a, b = other.figures[name], record.figures[name]
            if a != b:
                raise UserError(
                    f"{other} and {record}: different {said} at seed {record.seed}, {_say(a)} and {_say(b)}: not compared"
                )


def _say(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)[:12]
