"""What became of the weights: groups of examples, and charts of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from ssl_weighting.app.report.charts import histogram, legend, line, plot_area, shades, stacked, svg
from ssl_weighting.app.runs import Run, WeightHistory

COLUMNS, BINS = 60, 40  # of the picture of Λ over training
NARROWEST = 0.02
"""Range of weights that an axis shows at least; of less its numbers would all read the same."""
JUDGED = {"pseudo-label right": "right", "pseudo-label wrong": "wrong", "foreign class": "foreign"}
GROUPS = JUDGED | {
    "label unknown": "unknown",
    "trained with its label": "given",
    "not seen yet": "unseen",
}
"""Kinds of examples, and the colour of each in the style sheet."""


def groups_of(run: Run, known: int | None) -> dict[str, np.ndarray]:
    """Which examples belong to each of ``GROUPS``, (|U|,) bool; every example to one. Empty groups are left out.

    Pseudo-labels are judged by labels that training did not see: the pool holds the labelled examples as well.

    Args:
        run: The run.
        known: Number of classes that were learned, if the data could be asked.
    """
    labels = _numbers(run.weights["label"])
    guesses = _numbers(run.weights["pseudo_label"])
    given = np.isin(run.weights["index"].to_numpy(), run.split.labeled.numpy())
    foreign = ~given & (labels >= (_known_classes(run) if known is None else known))
    unknown = ~given & (labels < 0)
    own = ~given & ~foreign & ~unknown
    right, unseen = own & (labels == guesses), own & (guesses < 0)
    masks = (right, own & ~right & ~unseen, foreign, unknown, given, unseen)
    return {name: mask for name, mask in zip(GROUPS, masks, strict=True) if mask.any()}


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Class numbers (n,) int64; −1 where there is none."""
    numbers: np.ndarray = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    return numbers


def _known_classes(run: Run) -> int:
    """How many classes were learned, where the data cannot be asked: pool classes count from there on."""
    listed = run.config["data"].get("init_args", {}).get("known_classes")
    return len(listed) if listed else 1 << 30


def weight_charts(run: Run, groups: dict[str, np.ndarray]) -> list[tuple[str, str, Markup]]:
    """Title, explanation and picture of everything that is known of the weights; nothing if none moved."""
    weight = run.weights["weight"].to_numpy().astype(np.float64)  # float32: too coarse for narrow bins
    moved = run.weights["updates"].to_numpy() > 0
    if not moved.any():
        return []
    charts = []
    history = run.weight_history
    if history is not None and len(history.steps) > 1:
        charts.append(
            (
                "Weights over training",
                "The stronger the colour, the more examples. The line is the mean.",
                _history_chart(history, run.metrics.get("weights/mean")),
            )
        )
    shown = {name: weight[mask & moved] for name, mask in groups.items() if (mask & moved).any()}
    colours = [GROUPS[name] for name in shown]
    charts.append(
        (
            "Weights at the end",
            "Of the examples that moved.",
            histogram(shown, colours, "Histogram of the weights", "weight λ"),
        )
    )
    confidence = run.weights["confidence"].to_numpy().astype(np.float64)
    seen = moved & np.isfinite(confidence)
    if seen.any():
        charts.append(
            (
                "Weight against confidence",
                "The stronger the colour, the more examples. The line is their mean weight.",
                _confidence_chart(confidence[seen], weight[seen]),
            )
        )
    known = {name: values for name, values in shown.items() if name in JUDGED}
    if known:
        charts.append(
            (
                "Weight against correctness",
                "From least to most weight; the wider a bar, the more examples. By labels that training did not see.",
                stacked(known, [GROUPS[n] for n in known], "Share of right pseudo-labels by weight"),
            )
        )
    return charts


def _history_chart(history: WeightHistory, mean: tuple[np.ndarray, np.ndarray] | None) -> Markup:
    """Λ's histograms beside each other, each on the same bins."""
    columns = np.linspace(history.steps[0], history.steps[-1], COLUMNS)
    nearest = np.abs(history.steps - columns[:, None]).argmin(1)
    low, high = _range(history)
    edges = np.linspace(low, max(high, low + NARROWEST), BINS + 1)
    shares = np.stack([_rebinned(history, t, edges) for t in nearest])
    axes = plot_area((columns[0], columns[-1]), (edges[0], edges[-1]), "θ steps", "weight λ")
    half = (columns[1] - columns[0]) / 2
    shades(axes, shares, np.array([columns[0] - half, columns[-1] + half]), edges)
    if mean is not None and len(mean[0]) > 1:
        line(axes, *mean, "c1")
    return legend(["examples", "mean"], ["accent", "c1"]) + svg(
        axes, "Histograms of the weights over training"
    )


def _all_equal(history: WeightHistory, t: int) -> float | None:
    """The weight of all, if it is the same: they are in one bin then, from half a unit below to half a unit above it."""
    alone = (history.counts[t] > 0).sum() == 1
    return float(history.low[t] + history.high[t]) / 2 if alone else None


def _range(history: WeightHistory) -> tuple[float, float]:
    """The least weight, and one that at no time more than one in a thousand exceed: outliers would squeeze the rest."""
    lows, highs = [], []
    for t, (low, high, counts) in enumerate(zip(history.low, history.high, history.counts, strict=True)):
        equal = _all_equal(history, t)
        reached = np.searchsorted(counts.cumsum(), 0.999 * counts.sum())
        lows.append(low if equal is None else equal)
        highs.append(low + (high - low) * (reached + 1) / len(counts) if equal is None else equal)
    return float(min(lows)), float(max(highs))


def _rebinned(history: WeightHistory, t: int, edges: np.ndarray) -> np.ndarray:
    """The share of weights between edges (n + 1,), taking those in a bin to be spread evenly. Returns (n,)."""
    counts, equal = history.counts[t], _all_equal(history, t)
    if equal is not None:
        return np.histogram([equal], edges)[0].astype(np.float64)
    own = np.linspace(history.low[t], history.high[t], len(counts) + 1)
    below = np.interp(edges, own, np.concatenate([[0.0], counts.cumsum()]) / max(counts.sum(), 1))
    shares: np.ndarray = np.diff(below)
    return shares


def _confidence_chart(confidence: np.ndarray, weight: np.ndarray) -> Markup:
    high = float(np.quantile(weight, 0.999))
    low = float(weight.min())
    counts, x_edges, y_edges = np.histogram2d(
        confidence,
        weight,
        (36, 28),
        ((float(confidence.min()), max(1.0, float(confidence.max()))), (low, max(high, low + NARROWEST))),
    )
    axes = plot_area(
        (x_edges[0], x_edges[-1]), (y_edges[0], y_edges[-1]), "confidence in the pseudo-label", "weight λ"
    )
    shades(axes, counts, x_edges, y_edges)
    total, _ = np.histogram(confidence, x_edges)
    sums, _ = np.histogram(confidence, x_edges, weights=weight)
    enough = total >= max(3, 0.002 * len(weight))
    middles = (x_edges[:-1] + x_edges[1:]) / 2
    if enough.sum() > 1:
        line(axes, middles[enough], sums[enough] / total[enough], "c1")
    return legend(["examples", "mean"], ["accent", "c1"]) + svg(axes, "Weight against confidence")


def group_table(run: Run, groups: dict[str, np.ndarray]) -> list[tuple[str, str, str, str, str]]:
    """For every group: name, colour, examples, mean and median weight."""
    weight = run.weights["weight"].to_numpy()
    return [
        (
            name,
            GROUPS[name],
            f"{mask.sum():,}",
            f"{weight[mask].mean():.3f}",
            f"{np.median(weight[mask]):.3f}",
        )
        for name, mask in groups.items()
    ]
