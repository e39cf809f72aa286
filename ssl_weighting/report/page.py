"""``report.html``: one run on one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ssl_weighting.errors import UserError
from ssl_weighting.examples import descriptions, extremes, on_one_line, pictures
from ssl_weighting.files import whole_file
from ssl_weighting.redact import without_secrets
from ssl_weighting.report.charts import (
    Axes,
    Series,
    curves,
    histogram,
    legend,
    shades,
    short,
    stacked,
)
from ssl_weighting.runs import Run, WeightHistory

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_weighting.data.base import SSLData

GALLERY = 16
"""Examples of each kind in the gallery."""
LONGEST_TEXT = 1200
COLUMNS, BINS = 60, 40  # of the picture of Λ over training
GROUPS = {
    "pseudo-label right": "right",
    "pseudo-label wrong": "wrong",
    "foreign class": "foreign",
    "label unknown": "unknown",
}


@dataclass(frozen=True)
class Card:
    """An example in the gallery.

    Attributes:
        text: Its path or text.
        picture: A PNG as a data address, or nothing.
        facts: What is known of it.
        group: One of ``GROUPS``.
    """

    text: str
    picture: str
    facts: list[tuple[str, str]]
    group: str


def write_page(run: Run, data: SSLData | None = None) -> Path:
    """Write ``report.html`` into a run's folder; one that is there is drawn anew.

    Args:
        run: The run.
        data: Its data module, set up, if it is at hand; otherwise it is built from the run's configuration. Where the
            data are not to be had, the page says so and shows row numbers in place of pictures and texts.

    Returns:
        The page's path.

    Raises:
        UserError: If a file of the run is missing or damaged.
    """
    missing = ""
    if data is None:
        try:
            data = run.data()
        except UserError as error:
            missing = str(error)
    path = run.directory / "report.html"
    page = render(run, data, missing)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def render(run: Run, data: SSLData | None, missing: str = "") -> str:
    """The page as HTML.

    Args:
        run: The run.
        data: Its data module, set up, if it is to be had.
        missing: Why it is not.
    """
    names = data.class_names if data is not None else []
    known = data.num_classes if data is not None else None
    groups = _groups(run, known)
    environment = Environment(
        loader=PackageLoader("ssl_weighting.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("page.css").render()
    harmful, helpful = extremes(run.weights, GALLERY)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        style=Markup(style),  # ours; the digest allows this text and no other
        style_digest=digest,
        run=run,
        seed=run.config.get("seed_everything"),
        written=time.strftime("%Y-%m-%d %H:%M"),
        tiles=_tiles(run),
        charts=_training_charts(run),
        weight_charts=_weight_charts(run, groups),
        group_table=_group_table(run, groups),
        group_legend=legend(list(groups), [GROUPS[name] for name in groups]) if len(groups) > 1 else "",
        missing=missing,
        galleries=[
            ("Most harmful", "least weight", _cards(run, data, names, groups, harmful)),
            ("Most helpful", "most weight", _cards(run, data, names, groups, helpful)),
        ],
        what=_what(run),
        split=_split(run, names),
        timing=_timing(run),
        configuration=_configuration(run),
    )


# ---- figures ----------------------------------------------------------------------------------------------


def _newest(run: Run, name: str) -> float | None:
    return float(run.metrics[name][1][-1]) if name in run.metrics else None


def _tiles(run: Run) -> list[tuple[str, str]]:
    weight, moved = run.weights["weight"].to_numpy(), int((run.weights["updates"].to_numpy() > 0).sum())
    steps = max((int(x[-1]) for x, _ in run.metrics.values()), default=0)
    tiles = []
    for key, name in (("test/error", "test error"), ("validation/error", "validation error")):
        if (value := _newest(run, key)) is not None:
            tiles.append((name, f"{100 * value:.2f} %"))
    tiles += [
        ("θ steps", f"{steps:,} of {run.config['trainer'].get('max_steps', 0):,}"),
        ("unlabelled examples moved", f"{moved:,} of {len(weight):,}"),
        ("mean weight", f"{weight.mean():.3f}"),
        ("least and largest weight", f"{weight.min():.3f} … {weight.max():.3f}"),
    ]
    if run.timing:
        tiles.append(("training time", duration(run.timing["seconds"])))
    return tiles


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _training_charts(run: Run) -> list[tuple[str, str, Markup]]:
    """Title, explanation and picture of everything that was logged along the way."""

    def some(names: Mapping[str, str]) -> Series:
        return {shown: run.metrics[name] for name, shown in names.items() if name in run.metrics}

    terms = {
        name: name.removeprefix("train/")
        for name in run.metrics
        if name.startswith("train/") and name not in ("train/loss", "train/lr") and not name.endswith("_mask")
    }
    masks = {
        name: name.removeprefix("train/").removesuffix("_mask")
        for name in run.metrics
        if name.startswith("train/") and name.endswith("_mask")
    }
    errors = some({"validation/error": "validation", "test/error": "test"})
    evaluated = some({"validation/loss": "validation", "test/loss": "test"})
    charts = [
        (
            "Error",
            "Of the averaged model, in brackets the last.",
            curves(errors, "Error over training", "error", True),
        ),
        (
            "Loss, evaluated",
            "Cross-entropy of the averaged model.",
            curves(evaluated, "Loss over training", "nats"),
        ),
        (
            "Loss, trained",
            "Of single batches: the whole, and its terms with their weights.",
            curves(some({"train/loss": "whole"} | terms), "Training loss over training", "loss"),
        ),
    ]
    if influence := some({"influence/harmful": "harmful"}):
        charts.append(
            (
                "Harmful examples",
                "Share of each Λ step's examples whose influence raises the validation loss.",
                curves(influence, "Share of harmful examples over training", "share", True),
            )
        )
    if masks:
        charts.append(
            (
                "Examples that count",
                "Share of each batch that is confident enough to be trained on.",
                curves(some(masks), "Share of confident examples over training", "share", True),
            )
        )
    aurocs = some(
        {
            "pool/right_auroc_weight": "right from wrong, by weight",
            "pool/right_auroc_confidence": "right from wrong, by confidence",
            "pool/own_auroc_weight": "own from foreign, by weight",
            "pool/own_auroc_confidence": "own from foreign, by confidence",
        }
    )
    if aurocs:
        charts.append(
            (
                "Telling good from bad",
                "Area under the ROC curve, with labels that training never saw; 0.5 is chance.",
                curves(aurocs, "Area under the ROC curve over training", "AUROC"),
            )
        )
    return charts


def _groups(run: Run, known: int | None) -> dict[str, np.ndarray]:
    """Which examples, (|U|,) bool each, have a right, a wrong, no possible pseudo-label, or an unknown label."""
    labels = _numbers(run.weights["label"])
    guesses = _numbers(run.weights["pseudo_label"])
    foreign = labels >= (_known_classes(run) if known is None else known)
    own = (labels >= 0) & ~foreign & (guesses >= 0)
    masks = (own & (labels == guesses), own & (labels != guesses), foreign, labels < 0)
    return {name: mask for name, mask in zip(GROUPS, masks, strict=True) if mask.any()}


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Class numbers (n,) int64; −1 where there is none."""
    numbers: np.ndarray = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    return numbers


def _known_classes(run: Run) -> int:
    """How many classes were learned, where the data cannot be asked: pool classes count from there on."""
    listed = run.config["data"].get("init_args", {}).get("known_classes")
    return len(listed) if listed else 1 << 30


def _weight_charts(run: Run, groups: dict[str, np.ndarray]) -> list[tuple[str, str, Markup]]:
    weight = run.weights["weight"].to_numpy().astype(np.float64)  # float32: too coarse for narrow bins
    moved = run.weights["updates"].to_numpy() > 0
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
    css = [GROUPS[name] for name in shown]
    if not shown:
        return charts
    charts.append(
        (
            "Weights at the end",
            "Of the examples that moved.",
            histogram(shown, css, "Histogram of the weights", "weight λ"),
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
    if set(shown) - {"label unknown"}:
        known = {name: values for name, values in shown.items() if name != "label unknown"}
        charts.append(
            (
                "Weight against correctness",
                "From least to most weight, equally many examples a bar. Training never saw these labels.",
                stacked(known, [GROUPS[n] for n in known], "Share of right pseudo-labels by weight"),
            )
        )
    return charts


def _history_chart(history: WeightHistory, mean: tuple[np.ndarray, np.ndarray] | None) -> Markup:
    """Λ's histograms beside each other, each on the same bins."""
    chosen = np.unique(np.linspace(0, len(history.steps) - 1, COLUMNS).round().astype(int))
    steps = history.steps[chosen].astype(np.float64)
    low = float(history.low.min())
    high = _almost_all(history)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    shares = np.stack([_rebinned(history, t, edges) for t in chosen])
    middles = (steps[:-1] + steps[1:]) / 2
    borders = np.concatenate([[steps[0]], middles, [steps[-1]]])
    axes = Axes(
        (float(steps[0]), float(steps[-1])), (float(edges[0]), float(edges[-1])), "θ steps", "weight λ",
        "Histograms of the weights over training",
    )  # fmt: skip
    shades(axes, shares, borders, edges)
    if mean is not None and len(mean[0]) > 1:
        axes.line(*mean, "c1")
    return legend(["examples", "mean"], ["heat", "c1"]) + axes.svg()


def _almost_all(history: WeightHistory) -> float:
    """The weight that at every time no more than one in a thousand exceeds: few outliers would squeeze the rest."""
    bounds = []
    for low, high, counts in zip(history.low, history.high, history.counts, strict=True):
        reached = np.searchsorted(counts.cumsum(), 0.999 * counts.sum())
        bounds.append(low + (high - low) * (reached + 1) / len(counts))
    return float(max(bounds))


def _rebinned(history: WeightHistory, t: int, edges: np.ndarray) -> np.ndarray:
    """The share of weights between edges (n + 1,), taking those in a bin to be spread evenly. Returns (n,)."""
    counts = history.counts[t]
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
        ((float(confidence.min()), max(1.0, float(confidence.max()))), (low, max(high, low + 1e-6))),
    )
    axes = Axes(
        (float(x_edges[0]), float(x_edges[-1])), (float(y_edges[0]), float(y_edges[-1])),
        "confidence in the pseudo-label", "weight λ", "Weight against confidence",
    )  # fmt: skip
    shades(axes, counts, x_edges, y_edges)
    total, _ = np.histogram(confidence, x_edges)
    sums, _ = np.histogram(confidence, x_edges, weights=weight)
    enough = total >= max(3, 0.002 * len(weight))
    middles = (x_edges[:-1] + x_edges[1:]) / 2
    if enough.sum() > 1:
        axes.line(middles[enough], sums[enough] / total[enough], "c1")
    return legend(["examples", "mean"], ["heat", "c1"]) + axes.svg()


def _group_table(run: Run, groups: dict[str, np.ndarray]) -> list[tuple[str, str, str, str, str]]:
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


# ---- gallery ----------------------------------------------------------------------------------------------


def _cards(
    run: Run, data: SSLData | None, names: list[str], groups: dict[str, np.ndarray], positions: np.ndarray
) -> list[Card]:
    rows = run.weights.take(positions).to_pylist()
    texts = [f"row {row['index']}" for row in rows] if data is None else descriptions(data, positions)
    images = None if data is None else pictures(data, positions)
    cards = []
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        facts = [("weight", f"{row['weight']:.3f}"), ("influence", short_or_none(row["influence"]))]
        if row["pseudo_label"] is not None:
            facts.append(
                ("taken for", f"{_class(names, row['pseudo_label'])} ({100 * row['confidence']:.0f} %)")
            )
        if row["label"] is not None:
            facts.append(("really", _class(names, row["label"])))
        group = next((GROUPS[name] for name, mask in groups.items() if mask[positions[i]]), "unknown")
        cards.append(Card(_cut(text), _data_address(images[i]) if images else "", facts, group))
    return cards


def short_or_none(value: float | None) -> str:
    """A number, or a dash."""
    return "-" if value is None else short(float(f"{value:.2g}"))


def _class(names: list[str], number: int) -> str:
    return on_one_line(names[number], 60) if 0 <= number < len(names) else f"class {number}"


def _cut(text: str) -> str:
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def _data_address(picture: Tensor) -> str:
    """A picture uint8 (1 or 3, height, width) as a PNG inside an address."""
    file = BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- facts ------------------------------------------------------------------------------------------------


def _what(run: Run) -> str:
    """The run in one line: method, weighting, network, data."""
    model, data = run.config["model"], run.config["data"]

    def name(part: Any) -> str:
        return str(part.get("class_path", "")).rpartition(".")[2] if isinstance(part, dict) else ""

    parts = [name(model.get("algorithm")), f"{model.get('weighting')} weights", name(model.get("influence"))]
    return " · ".join(p for p in [*parts, name(model.get("backbone")), name(data)] if p)


def _split(run: Run, names: list[str]) -> list[tuple[str, str]]:
    split = run.split
    facts = [
        ("data set", split.data_set),
        ("labelled", f"{len(split.labeled):,}"),
        ("validation", f"{len(split.validation):,}"),
        ("unlabelled", f"{len(split.unlabeled):,}, the labelled ones among them"),
        ("seed of the split", str(split.seed)),
        ("sha256 of the split", split.sha256()[:16] + "…"),
        ("sha256 of the data", split.checksum[:16] + "…"),
    ]
    if names:
        shown = ", ".join(on_one_line(name, 40) for name in names[:40])
        facts.append(("classes", shown + (f" and {len(names) - 40} more" if len(names) > 40 else "")))
    return facts


def _timing(run: Run) -> list[tuple[str, str]]:
    timing = run.timing
    if not timing:
        return []
    training = timing["seconds"] - timing["evaluation_seconds"]
    return [
        ("training", duration(training)),
        ("evaluations", duration(timing["evaluation_seconds"])),
        ("θ steps a second", f"{timing.get('steps', 0) / max(training, 1e-9):.3g}, Λ steps included"),
        ("device", f"{timing.get('device')}, {timing.get('processes')} x {timing.get('precision')}"),
        ("versions", f"ssl-weighting {timing.get('ssl_weighting')}, torch {timing.get('torch')}"),
    ]


def _configuration(run: Run) -> str:
    """The configuration without loggers, which is where keys would be, and without anything that looks like one."""
    config = without_secrets(run.config)
    trainer = {
        k: v
        for k, v in config["trainer"].items()
        if k not in ("logger", "plugins", "callbacks") and v is not None
    }
    shown = {k: config.get(k) for k in ("seed_everything", "data", "model")} | {"trainer": trainer}
    return str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100))
