"""Charts as inline SVG, drawn by matplotlib in the colours of the page's style sheet, so that they follow its theme.

No ``style`` attribute and no script, so that the page can forbid both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 26, 40
DIGIT = 7
"""Width of a digit."""
LINES = [f"c{i}" for i in range(8)]
VARIABLES = ["soft", "line", "right", "wrong", "foreign", "unknown", "given", "unseen", *LINES]
"""Colours of the style sheet that charts are drawn in."""
INK = {name: f"#0000{i:02d}" for i, name in enumerate(VARIABLES, 1)}
"""What matplotlib draws each of them with. None is black, which it would leave out."""

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def short(value: float, _: float = 0) -> str:
    """A number for an axis: 20k, 0.25, 3e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def percent(value: float, _: float = 0) -> str:
    """A share as an axis writes it."""
    return f"{100 * value:.3g} %"


def plot_area(
    x: tuple[float, float],
    y: tuple[float, float],
    x_label: str,
    y_label: str,
    y_text: Callable[[float, float], str] = short,
) -> Axes:
    """Axes from the least to the largest x and y, with ``y_label`` above them, in a figure of their own."""
    place = (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT)
    figure = Figure((WIDTH / 72, HEIGHT / 72), frameon=False)
    axes = figure.add_axes(place, xlim=_wide(*x), ylim=_wide(*y), facecolor="none")
    axes.set_xlabel(x_label, color=INK["soft"], fontsize=12)
    axes.set_title(y_label, loc="left", color=INK["soft"], fontsize=12, pad=9)
    for axis, count, text in ((axes.xaxis, 6, short), (axes.yaxis, 5, y_text)):
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(text)
    axes.tick_params(colors=INK["soft"], labelsize=12, left=False)
    axes.grid(axis="y", color=INK["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines.bottom.set_color(INK["soft"])
    return axes


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def svg(axes: Axes, title: str) -> Markup:
    """The whole picture.

    Args:
        axes: What was drawn.
        title: What is read out in place of the picture. Ids are made from it, so a page must not have a title twice.
    """
    figure, file = axes.figure, StringIO()
    assert isinstance(figure, Figure)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg")
    drawn = file.getvalue().partition("</style>")[2].partition("</defs>")[2]
    for pattern, new in (
        (r"\s*\n\s*", ""),
        (r' id="[\w.]+_\d+"| transform="rotate\(-?0 .*?\)"', ""),
        (r' style="(.*?)"', _attributes),
        (r"#0000(\d\d)", lambda ink: f"var(--{VARIABLES[int(ink[1]) - 1]})"),
        (r"(\.\d{3})\d+(?=[^<>]*>)", r"\1"),  # in attributes, not in text
        # A picture cannot have the style sheet's colours, but can let them through.
        (
            r'<image (.*?) id="(.*?)"(.*?)/>',
            r'<mask id="\2"><image \1\3/></mask>'
            rf'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--accent)" mask="url(#\2)"/>',
        ),
    ):
        drawn = re.sub(pattern, new, drawn)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{drawn}')


def _attributes(style: re.Match[str]) -> str:
    """What a ``style`` declares, as attributes, but for the font: that is the page's."""
    declared = dict(re.findall(r"([\w-]+): ?([^;]+)", style[1]))
    return "".join(f' {name}="{value}"' for name, value in declared.items() if not name.startswith("font"))


def legend(names: Sequence[str], colours: Sequence[str]) -> Markup:
    """What the colours stand for, as HTML above a chart."""
    items = (
        f'<span class="key"><svg viewBox="0 0 10 10"><rect fill="var(--{colour})" width="10" height="10" rx="2"/>'
        f"</svg>{escape(name)}</span>"
        for name, colour in zip(names, colours, strict=True)
    )
    return Markup('<p class="legend">' + "".join(items) + "</p>")


def curves(series: Series, title: str, y_label: str, shares: bool = False) -> Markup:
    """Lines over θ steps.

    Args:
        series: For every name x (n,) and y (n,). Values that are not finite are left out; long series are averaged.
        title: What is read out in place of the picture.
        y_label: Above the axis.
        shares: Write y as per cent.
    """
    kept = {name: _thinned(x, y) for name, (x, y) in series.items()}
    kept = {name: (x, y) for name, (x, y) in kept.items() if len(x)}
    if not kept:
        return Markup('<p class="none">nothing was logged</p>')
    all_x, all_y = (np.concatenate([pair[i] for pair in kept.values()]) for i in (0, 1))
    low = min(0.0, float(all_y.min()))
    high = float(all_y.max()) or 1.0
    text = percent if shares else short
    axes = plot_area(
        (min(0, all_x.min()), all_x.max()), (low, high + 0.05 * (high - low)), "θ steps", y_label, text
    )
    colours = [LINES[i % len(LINES)] for i in range(len(kept))]
    for (x, y), colour in zip(kept.values(), colours, strict=True):
        line(axes, x, y, colour)
    names = [f"{name} ({text(y[-1])})" for name, (_, y) in kept.items()]
    return legend(names, colours) + svg(axes, title)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """A line through points (n,); a dot if there is one."""
    axes.plot(x, y, color=INK[colour], linewidth=2, marker="" if len(x) > 1 else "o", clip_on=False)


def _thinned(x: np.ndarray, y: np.ndarray, points: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """At most ``points``, by averaging neighbours."""
    x, y = x[np.isfinite(y)].astype(np.float64), y[np.isfinite(y)]
    if len(x) <= points:
        return x, y
    parts = np.array_split(np.arange(len(x)), points)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def shades(axes: Axes, counts: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> None:
    """Counts (X, Y) between evenly spaced edges as shades, the square root of the largest the strongest."""
    pixels = np.ones((*counts.T.shape, 4))
    pixels[..., 3] = np.where(counts > 0, 0.06 + 0.94 * np.sqrt(counts / (counts.max() or 1)), 0).T
    extent = (x_edges[0], x_edges[-1], y_edges[0], y_edges[-1])
    axes.imshow(pixels, extent=extent, origin="lower", aspect="auto", interpolation="none", zorder=1)


def histogram(groups: Mapping[str, np.ndarray], colours: Sequence[str], title: str, x_label: str) -> Markup:
    """How several groups of values are spread, one over the other, each as the share of its own size.

    Args:
        groups: For every name its values (n,).
        colours: The style sheet's name for the colour of each.
        title: What is read out in place of the picture.
        x_label: Under the axis.
    """
    everything = np.concatenate(list(groups.values()))
    # Few outliers would squeeze the rest; they count in the last bin.
    high = float(np.quantile(everything, 0.999))
    edges = np.histogram_bin_edges(everything.clip(max=high), 40)
    shares = [np.histogram(v.clip(max=high), edges)[0] / max(len(v), 1) for v in groups.values()]
    axes = plot_area(
        (edges[0], edges[-1]), (0, 1.05 * np.max(shares)), x_label, "share of the group", percent
    )
    for share, colour in zip(shares, colours, strict=True):
        ink = INK[colour]
        axes.stairs(share, edges, fill=True, facecolor=(ink, 0.28), edgecolor=ink, linewidth=1.5)
    names = [f"{name}: {len(v)}, mean {v.mean():.2f}" for name, v in groups.items()]
    return legend(names, colours) + svg(axes, title)


def stacked(groups: Mapping[str, np.ndarray], colours: Sequence[str], title: str, bins: int = 8) -> Markup:
    """Of the examples with about the same value, the share that is of each group: a spinogram.

    Args:
        groups: For every name its values (n,).
        colours: The style sheet's name for the colour of each.
        title: What is read out in place of the picture.
        bins: Most bars, from the smallest values to the largest. Each is as wide as its share of all examples: about the
            same, but equal values are all in one bar.
    """
    everything = np.concatenate(list(groups.values()))
    values, place, count = np.unique(everything, return_inverse=True, return_counts=True)
    middle = (count.cumsum() - count / 2) / len(everything)
    _, bar_of_value = np.unique((middle * bins).astype(int), return_inverse=True)
    group = np.repeat(np.arange(len(groups)), [len(v) for v in groups.values()])
    counts = np.zeros((bar_of_value[-1] + 1, len(groups)), int)
    np.add.at(counts, (bar_of_value[place], group), 1)
    edges = np.concatenate([[0.0], counts.sum(1).cumsum() / len(everything)])
    axes = plot_area((0, 1), (0, 1), "weight λ", "share of the bar", percent)
    shares = counts / counts.sum(1, keepdims=True)
    widths = np.diff(edges)
    gaps = np.minimum(0.008, widths / 2)
    for height, top, colour in zip(shares.T, shares.cumsum(1).T, colours, strict=True):
        axes.bar(edges[:-1] + widths / 2, height, widths - gaps, top - height, color=INK[colour])
    least = [values[bar_of_value == i][0] for i in range(len(counts))]
    axes.set_xticks(edges, labels=_with_room(edges, [*least, values[-1]]))
    return legend(list(groups), colours) + svg(axes, title)


def _with_room(places: np.ndarray, values: Sequence[float]) -> list[str]:
    """Values at places between 0 and 1 of the axis, in three digits; empty for those that would overlap one before."""
    written, free = [], 0.0
    for x, value in zip(places * (WIDTH - LEFT - RIGHT) + LEFT, values, strict=True):
        number = short(float(f"{value:.3g}"))
        half = len(number) * DIGIT / 2
        fits = x - half >= free
        written.append(number if fits else "")
        free = x + half + DIGIT if fits else free
    return written
