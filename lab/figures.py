"""Figures of several runs: error over training, error over a factor, and boundaries in the plane."""

from __future__ import annotations

import statistics
from functools import partial
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from lab.records import Record, error_of, has_medians, parts_of
from ssl_weighting.app.report.boundaries import animate_boundaries, draw_boundaries
from ssl_weighting.app.runs import Run
from ssl_weighting.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
BANDS = 5
"""Most arms whose deviation is shown: bands of more would hide each other."""
PLANES = 3
"""Most combinations of levels whose boundaries are drawn: an animation takes seconds."""
COLOURS = ("#1b6ca8", "#d1495b", "#2a7f62", "#edae49", "#8338ec", "#6c757d", "#00a6a6", "#a0522d", "#e377c2")


def write_figures(records: list[Record], out: Path, name: str) -> None:
    """Draw all figures that a study's runs allow, as PNG and SVG.

    ``<name>_training`` needs the runs' own files; ``<name>_factor`` a factor of at least two levels; pictures and
    animations ``<name>_boundary_…`` runs on points in the plane, at no more than three combinations of levels; the first
    seed is drawn.

    Args:
        records: Runs of one study.
        out: Folder that is there.
        name: Beginning of the files' names.
    """
    if all(record.folder for record in records):
        save(draw_training(records), out / f"{name}_training")
    if any(len(levels) > 1 for levels in levels_of(records).values()):
        save(draw_factor(records), out / f"{name}_factor")
    planes = _drawn_in_the_plane(records)
    for levels, arms in planes.items() if len(planes) <= PLANES else ():
        stem = "_".join((f"{name}_boundary", *levels))
        with whole_file(out / f"{stem}.png") as unfinished:
            _small_png(draw_boundaries(arms), unfinished)
        with whole_file(out / f"{stem}.webp") as unfinished:
            animate_boundaries(arms, unfinished)


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG, each whole or not at all."""
    for ending in ("png", "svg"):
        with whole_file(stem.with_name(f"{stem.name}.{ending}")) as unfinished:
            figure.savefig(unfinished, format=ending, dpi=110)


def _small_png(figure: Figure, path: Path) -> None:
    """A PNG of 255 colours: thousands of points, as vectors or in full colour, are large."""
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(255).save(path, "PNG", optimize=True)


def levels_of(records: list[Record]) -> dict[str, list[str]]:
    """Factor → its levels, in order of appearance."""
    names = dict.fromkeys(name for record in records for name in record.levels)
    return {n: list(dict.fromkeys(r.levels[n] for r in records if n in r.levels)) for n in names}


def draw_training(records: list[Record]) -> Figure:
    """Error over θ steps, mean and, of few arms, deviation over seeds: a panel a combination of levels, a line an arm.

    The validation error; the test error where it was followed.
    """
    curves = {id(record): Run(record.folder).metrics for record in records if record.folder}
    followed = all("test/error" in found and len(found["test/error"][0]) > 1 for found in curves.values())
    part = "test" if followed else "validation"
    panels = list(dict.fromkeys(tuple(record.levels.items()) for record in records))
    arms = list(dict.fromkeys(record.arm for record in records))
    figure, axes = _panels(len(panels))
    for axis, panel in zip(axes, panels, strict=False):
        for arm in arms:
            mine = [r for r in records if r.arm == arm and tuple(r.levels.items()) == panel]
            if mine:
                found = [dict(zip(*curves[id(r)][f"{part}/error"], strict=True)) for r in mine]
                steps = sorted(set.intersection(*(set(f) for f in found)))
                values = 100 * np.array([[f[step] for step in steps] for f in found])
                colour = COLOURS[arms.index(arm) % len(COLOURS)]
                _line(axis, np.array(steps), values, arm, colour, band=len(arms) <= BANDS)
        axis.set_title(", ".join(f"{name} {level}" for name, level in panel), fontsize=10)
        axis.set_xlabel("θ steps")
        axis.set_ylabel(f"{part} error, %")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str, *, band: bool) -> None:
    """The mean of values (seeds, steps), none negative; with ``band``, the standard deviation of several seeds."""
    mean = values.mean(0)
    axis.plot(steps, mean, color=colour, label=f"{label} ({len(values)})", linewidth=1.5)
    if band and len(values) > 1:
        std = values.std(0, ddof=1)
        axis.fill_between(steps, (mean - std).clip(min=0), mean + std, color=colour, alpha=0.15, linewidth=0)


def draw_factor(records: list[Record]) -> Figure:
    """Error over the levels of the last factor, mean and standard deviation: a panel each other combination."""
    name = list(levels_of(records))[-1]
    levels = levels_of(records)[name]
    others = list(dict.fromkeys(_without(record, name) for record in records))
    arms = list(dict.fromkeys(record.arm for record in records))
    places, labels = _places(levels)
    part = parts_of(records)[0]
    value = partial(error_of, part=part, median=has_medians(records, part))
    figure, axes = _panels(len(others))
    for axis, other in zip(axes, others, strict=False):
        for arm in arms:
            mine = [r for r in records if r.arm == arm and _without(r, name) == other]
            found = [
                (p, [value(r) for r in mine if r.levels[name] == level])
                for p, level in zip(places, levels, strict=True)
            ]
            shown = [(place, errors) for place, errors in found if errors]
            # Side by side where levels are names: error bars would hide each other.
            aside = 0.0 if labels is None else 0.6 * ((arms.index(arm) + 0.5) / len(arms) - 0.5)
            means = [statistics.mean(errors) for _, errors in shown]
            stds = [statistics.stdev(errors) if len(errors) > 1 else 0.0 for _, errors in shown]
            axis.errorbar(
                [place + aside for place, _ in shown],
                means,
                [list(map(min, means, stds)), stds],  # no error is below 0
                label=arm,
                color=COLOURS[arms.index(arm) % len(COLOURS)],
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=1.2,
                linestyle="-" if labels is None else "none",
            )
        if labels is None:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(places, _wrapped(labels) if labels else levels)
        axis.set_xlabel(name)
        axis.set_ylabel(f"{part} error, %")
        axis.set_title(", ".join(f"{n} {level}" for n, level in other), fontsize=10)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _without(record: Record, name: str) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in record.levels.items() if item[0] != name)


def _places(levels: list[str]) -> tuple[list[float], list[str] | None]:
    """Where levels lie on the axis: numbers above 0 on a logarithmic one, others side by side under their names."""
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        numbers = []
    if numbers and min(numbers) > 0:
        return numbers, None
    return [float(i) for i in range(len(levels))], levels


def _wrapped(labels: list[str]) -> list[str]:
    """Labels in lines short enough to stand side by side."""
    return [fill(label, max(8, 44 // len(labels))) for label in labels]


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of at least ``number`` panels of the same errors up, the last ones empty."""
    from matplotlib.figure import Figure

    columns = 2 if number == 4 else min(COLUMNS, number)
    rows = -(-number // columns)
    figure = Figure(
        figsize=(4.2 * columns + 0.6, 3.3 * rows) if number > 1 else (6.4, 4.2), layout="constrained"
    )
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharey=True)).flat)
    for axis in axes:
        axis.grid(alpha=0.2)
    for axis in axes[number:]:
        axis.set_axis_off()
    return figure, axes


def _drawn_in_the_plane(records: list[Record]) -> dict[tuple[str, ...], dict[str, Path]]:
    """Levels → arm → ``boundary.npz`` of the first seed."""
    found: dict[tuple[str, ...], dict[str, Path]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        if record.folder and (record.folder / "boundary.npz").is_file():
            found.setdefault(tuple(record.levels.values()), {}).setdefault(
                record.arm, record.folder / "boundary.npz"
            )
    return found
