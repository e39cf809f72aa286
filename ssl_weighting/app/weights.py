"""``ssl-weighting weights``: which unlabelled examples helped, which did harm, and a pool without the latter."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_weighting.app.examples import descriptions, extremes, none_stands_out, on_one_line
from ssl_weighting.app.runs import OWN, OWN_SCORE, Run
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path, whole_file

if TYPE_CHECKING:
    from ssl_weighting.data.module import SSLData


LIKELY = 0.5
"""The least own probability that ``--clean`` keeps."""


def main(argv: list[str]) -> int:
    """List the most down- and up-weighted unlabelled examples of a run; export all; write a cleaned list.

    Args:
        argv: ``RUN [--top N] [--export FILE] [--clean FILE] [--threshold λ | --least-probability P]``.

    Returns:
        The exit status, 0.

    Raises:
        UserError: On bad input, or if a file is there already.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting weights", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=home_path, metavar="RUN", help="folder of a run")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="examples of each kind to list (20)")
    parser.add_argument(
        "--export", type=home_path, metavar="FILE", help="write all examples: .csv or .parquet"
    )
    parser.add_argument(
        "--clean",
        type=home_path,
        metavar="FILE",
        help="write the examples worth keeping, and those that validate, as a table for `init`: .csv or .parquet",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="λ",
        help="least weight that --clean keeps (default: half the initial weight; 0.5 if that is 0)",
    )
    parser.add_argument(
        "--least-probability",
        type=float,
        metavar="P",
        help=f"least {OWN} that --clean keeps, of a run that has it (default: {LIKELY})",
    )
    options = parser.parse_args(argv)
    if options.top < 0:
        raise UserError(f"--top={options.top}: must be at least 0")
    _check_kept(options)
    for name in ("export", "clean"):
        _check_file(name, getattr(options, name))
    run = Run(options.run)
    wanted = options.export is not None or options.clean is not None
    data = _data(run, needed=wanted)
    if not pc.any(pc.greater(run.weights["updates"], 0)).as_py():
        print(_why_none_moved(run))
    elif options.top:
        _print_extremes(run, data, options.top)
    elif not wanted:
        print(_facts(run.weights))
    if not wanted:
        return 0
    assert data is not None
    everything = export_table(run, data)
    if options.export is not None:
        _write(everything, options.export)
        print(f"{options.export}: all {len(everything)} unlabelled examples")
    if options.clean is not None:
        if options.threshold is None and OWN in everything.column_names:
            _write_own(data, everything, options.clean, options.least_probability)
        elif options.least_probability is None:
            _write_cleaned(run, data, everything, options.clean, options.threshold)
        else:
            raise UserError(
                f"--least-probability={options.least_probability}: the run has no {OWN}, which comes with frozen "
                "features, --baseline, and two labels a class; give --threshold"
            )
    return 0


def _check_kept(options: argparse.Namespace) -> None:
    """Refuse what says what ``--clean`` keeps, where that is not asked for, or said twice."""
    given = {"--threshold": options.threshold, "--least-probability": options.least_probability}
    typed = [f"{name}={value}" for name, value in given.items() if value is not None]
    if typed and options.clean is None:
        raise UserError(f"{typed[0]}: says what --clean keeps; give --clean FILE too")
    if len(typed) > 1:
        raise UserError(f"{', '.join(typed)}: each says what --clean keeps; give one of them")


def _write_own(data: SSLData, everything: pa.Table, path: Path, least: float | None) -> None:
    """Write the examples that probably belong and all labelled ones, and say how many strangers are expected left."""
    least = LIKELY if least is None else least
    assert data.split is not None
    labeled = pc.is_in(everything["index"], value_set=pa.array(data.split.labeled.numpy()))
    kept = everything.filter(pc.or_(pc.greater_equal(everything[OWN], least), labeled))
    validation = _validation_table(data, everything)
    _write(pa.concat_tables([kept, validation]), path)
    strangers = float((1 - kept[OWN].to_numpy()).sum())
    print(
        f"{path}: {len(kept)} of {len(everything)} unlabelled examples, those of {OWN} ≥ {least:g} and the labelled "
        f"ones; about {strangers:.0f} of them are expected to be of no known class"
        + (f"; and the {len(validation)} validation examples, without a weight" if len(validation) else "")
    )


def _write_cleaned(
    run: Run, data: SSLData, everything: pa.Table, path: Path, threshold: float | None
) -> None:
    """Write the examples at or above the threshold and those that validate, and say what was left out, and why."""
    initial = run.initial_weight
    half = f"half the initial weight {initial:g}" if initial else "weights began at 0"
    why = half if threshold is None else "--threshold"
    threshold = (initial or 1.0) / 2 if threshold is None else threshold
    kept = everything.filter(pc.greater_equal(everything["weight"], threshold))
    validation = _validation_table(data, everything)
    _write(pa.concat_tables([kept, validation]), path)
    print(
        f"{path}: {len(kept)} of {len(everything)} unlabelled examples, those of weight ≥ {threshold:g} "
        f"({why})"
        + (f"; and the {len(validation)} validation examples, without a weight" if len(validation) else "")
    )
    print(_why_so_many(everything, len(kept), threshold, initial))


def _why_so_many(everything: pa.Table, kept: int, threshold: float, initial: float) -> str:
    """Whether anything was left out, and how far the weights are a reason to."""
    count, moved, said = len(everything), _moved(everything), _facts(everything)
    if moved < count:
        fate = "kept" if np.float32(initial) >= threshold else "left out"
        said += f", the other {count - moved} have their initial weight {initial:g} and are {fate}"
    if 0 < kept < count:
        return said
    hint = "another --threshold, or a run with more Λ steps, may tell them apart"
    return f"nothing was found to {'leave out' if kept else 'keep'}: {said}; {hint}"


def _moved(weights: pa.Table) -> int:
    return int((weights["updates"].to_numpy() > 0).sum())


def _facts(weights: pa.Table) -> str:
    """The range of λ, and how many of them moved."""
    values = weights["weight"].to_numpy()
    return f"λ lies from {values.min():.3g} to {values.max():.3g}; Λ steps moved {_moved(weights)} of {len(values)}"


def _why_none_moved(run: Run) -> str:
    """Why no weight of a run moved, and what to type for weights that do."""
    model = run.config["model"]
    options = model["weighting"]
    warmup, inner = options["warmup_steps"], options["inner_steps"]
    made = max((int(steps[-1]) for steps, _ in run.metrics.values()), default=0)
    if options["kind"] == "fixed":
        why = "trained with model.weighting.kind=fixed; a run with --model.weighting.kind per_example learns them"
    elif "influence/mean" in run.metrics:
        why = "all examples of the Λ steps were masked out; a run with --model.weighting.update_masked true moves them"
    elif made < warmup + inner:
        why = (
            f"no Λ step was made in {made} steps: model.weighting.warmup_steps={warmup} and "
            f"model.weighting.inner_steps={inner} put the first after step {warmup + inner}; ssl-weighting resume "
            f"{shlex.quote(str(run.directory))} --trainer.max_steps {10 * (warmup + inner)} trains longer"
        )
    else:
        name = model["algorithm"]["class_path"].rpartition(".")[2]
        why = f"model.algorithm={name} looks at no unlabelled example; give another, such as --model.algorithm UDA"
    return f"No weight moved: {why}"


def export_table(run: Run, data: SSLData) -> pa.Table:
    """All unlabelled examples with path or text.

    Columns: ``index``, row in the data set; ``path``, absolute, ``text`` or, for other data, ``example``; ``weight``;
    ``updates``; ``influence``; ``pseudo_label``, the class by name; ``confidence``; ``label``, by name, null where
    unknown; ``own_probability`` and ``own_score``, where the run has them.

    Args:
        run: The run.
        data: Its data module, set up.
    """
    names = np.array([*data.class_names, None], dtype=object)

    def named(column: str) -> pa.Array:
        numbers = pc.fill_null(run.weights[column], len(names) - 1).to_numpy()
        return pa.array(names[numbers], pa.string())

    columns = {
        "index": run.weights["index"],
        _kind(data): pa.array(_known_by(data, descriptions(data, np.arange(len(run.weights)))), pa.string()),
        "weight": run.weights["weight"],
        "updates": run.weights["updates"],
        "influence": run.weights["influence"],
        "pseudo_label": named("pseudo_label"),
        "confidence": run.weights["confidence"],
        "label": named("label"),
    }
    columns |= {name: run.weights[name] for name in (OWN, OWN_SCORE) if name in run.weights.column_names}
    return pa.table(columns)


def _validation_table(data: SSLData, like: pa.Table) -> pa.Table:
    """The validation examples in the columns of :func:`export_table`: with their labels, so that none is lost."""
    examples = data.sets["validation"]
    columns = {
        "index": pa.array(examples.rows.numpy()),
        _kind(data): pa.array(_known_by(data, examples.describe()), pa.string()),
        "label": pa.array([data.class_names[label] for label in examples.labels.tolist()], pa.string()),
    }
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(examples), field.type)
        for field in like.schema
    ]
    return pa.table(arrays, schema=like.schema)


def _known_by(data: SSLData, names: list[str]) -> list[str]:
    """Paths in full, so that a table can be read from anywhere; other names as they are."""
    if _kind(data) != "path":
        return names
    return [os.path.abspath(name) if os.path.lexists(name) else name for name in names]


def _kind(data: SSLData) -> str:
    """What the examples are known by, as the tables that these data are read from call it."""
    from ssl_weighting.data.images import Images
    from ssl_weighting.data.text import TextData

    return "path" if isinstance(data, Images) else "text" if isinstance(data, TextData) else "example"


def _check_file(name: str, path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--{name}={path}: end it in .csv or .parquet, which says how to write it")
    if path.exists():
        raise UserError(f"--{name}={path}: is there already and stays as it is; give another name")
    if not path.parent.is_dir():
        raise UserError(f"--{name}={path}: {path.parent} is no folder; make it, or give another name")


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as partial:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, partial)
        else:
            pq.write_table(table, partial)


def _data(run: Run, needed: bool) -> SSLData | None:
    try:
        return run.data()
    except UserError as error:
        if needed:
            raise
        print(f"shown by row number, because the data could not be read: {error}", file=sys.stderr)
        return None


def _print_extremes(run: Run, data: SSLData | None, top: int) -> None:
    console = Console(soft_wrap=not sys.stdout.isatty())
    found = dict(zip(("harmful", "helpful"), extremes(run.weights, top, run.initial_weight), strict=True))
    if not any(map(len, found.values())):
        console.print(none_stands_out("", run.weights, run.initial_weight), highlight=False, markup=False)
        return
    for kind, positions in found.items():
        if not len(positions):
            console.print(
                none_stands_out(kind, run.weights, run.initial_weight), highlight=False, markup=False
            )
            continue
        table = Table(title=f"most {kind}", title_justify="left")
        for name in ("weight", "influence"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("taken for")
        table.add_column("really")
        table.add_column("example", overflow="fold")
        texts = None if data is None else descriptions(data, positions)
        for i, row in enumerate(run.weights.take(positions).to_pylist()):
            cells = [f"{row['weight']:.3f}", "" if row["influence"] is None else f"{row['influence']:.2e}"]
            cells += [_name(data, row["pseudo_label"]), _name(data, row["label"])]
            cells.append(on_one_line(texts[i], 200) if texts else f"row {row['index']}")
            table.add_row(*[Text(cell) for cell in cells])  # Text: brackets in data are no markup
        console.print(table)


def _name(data: SSLData | None, number: int | None) -> str:
    if number is None:
        return "?"
    return on_one_line(data.class_names[number], 40) if data is not None else str(number)
