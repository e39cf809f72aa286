"""Charts as inline SVG: small, coloured by the page's style sheet, so that they follow its light or dark theme.

No ``style`` attribute and no script, so that the page can forbid both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 26, 36
DIGIT = 7
"""Width of a digit."""
COLOURS = 8  # the style sheet has c0 to c7

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def short(value: float) -> str:
    """A number for an axis: 20k, 0.25, 3e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


@dataclass
class Axes:
    """A plot area with its axes; the drawing methods take data coordinates.

    Attributes:
        x: Least and largest x.
        y: Least and largest y.
        x_label: Under the axis.
        y_label: Above the axis.
        title: What is read out in place of the picture.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    title: str
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y = _wide(*self.x), _wide(*self.y)

    def px(self, x: float | np.ndarray) -> np.ndarray:
        """Horizontal place of x."""
        return LEFT + (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float | np.ndarray) -> np.ndarray:
        """Vertical place of y."""
        return (
            HEIGHT - BOTTOM - (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        )

    def line(self, x: np.ndarray, y: np.ndarray, css: str) -> None:
        """A line through points (n,); a dot if there is one."""
        xs, ys = self.px(x), self.py(y)
        if len(xs) == 1:
            self.parts.append(f'<circle class="dot {css}" cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="3"/>')
            return
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
        self.parts.append(f'<polyline class="line {css}" points="{points}"/>')

    def rectangle(
        self, x: tuple[float, float], y: tuple[float, float], css: str, opacity: float = 1.0
    ) -> None:
        """A filled rectangle between two x and two y."""
        left, right = (float(v) for v in self.px(np.array(x)))
        bottom, top = (float(v) for v in self.py(np.array(y)))
        shade = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.4):.1f}" '
            f'height="{max(bottom - top, 0):.1f}"{shade}/>'
        )

    def svg(
        self,
        y_text: Callable[[float], str] = short,
        x_ticks: Sequence[tuple[float, float]] | None = None,
    ) -> Markup:
        """The whole picture.

        Args:
            y_text: Writes a number of the vertical axis.
            x_ticks: Places on the horizontal axis and the numbers there, of which three digits are written; those with
                no room are left out. Default: the axis' own.
        """
        frame = []
        for value in _ticks(*self.y, 5):
            y = float(self.py(value))
            frame.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            frame.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(y_text(value))}</text>'
            )
        free = 0.0  # up to where numbers are written
        for place, value in x_ticks or [(tick, tick) for tick in _ticks(*self.x, 6)]:
            x, y = float(self.px(place)), HEIGHT - BOTTOM
            frame.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
            number = short(value if x_ticks is None else float(f"{value:.3g}"))
            half = len(number) * DIGIT / 2
            if x - half < free:
                continue
            free = x + half + DIGIT
            frame.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{escape(number)}</text>')
        frame.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text class="label" x="{LEFT}" y="14">{escape(self.y_label)}</text>'
        )
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            + "".join(frame)
            + "".join(self.parts)
            + "</svg>"
        )


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int) -> list[float]:
    ticks = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    margin = 1e-9 * (high - low)
    return [float(t) for t in ticks if low - margin <= t <= high + margin]


def percent(value: float) -> str:
    """A share as an axis writes it."""
    return f"{100 * value:.3g} %"


def legend(names: Sequence[str], css: Sequence[str]) -> Markup:
    """What the colours stand for, as HTML above a chart."""
    items = (
        f'<span class="key"><svg viewBox="0 0 10 10"><rect class="{c}" width="10" height="10" rx="2"/></svg>'
        f"{escape(name)}</span>"
        for name, c in zip(names, css, strict=True)
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
    axes = Axes(
        (float(min(0, all_x.min())), float(all_x.max())),
        (low, high + 0.05 * (high - low)),
        "θ steps",
        y_label,
        title,
    )
    css = [f"c{i % COLOURS}" for i in range(len(kept))]
    for (x, y), colour in zip(kept.values(), css, strict=True):
        axes.line(x, y, colour)
    names = [f"{name} ({percent(y[-1]) if shares else short(y[-1])})" for name, (_, y) in kept.items()]
    return legend(names, css) + axes.svg(y_text=percent if shares else short)


def _thinned(x: np.ndarray, y: np.ndarray, points: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """At most ``points``, by averaging neighbours."""
    x, y = x[np.isfinite(y)].astype(np.float64), y[np.isfinite(y)]
    if len(x) <= points:
        return x, y
    parts = np.array_split(np.arange(len(x)), points)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def shades(
    axes: Axes, counts: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray, css: str = "heat"
) -> None:
    """Counts (X, Y) between edges as shades, the square root of the largest the darkest."""
    largest = counts.max() or 1.0
    for i, j in np.argwhere(counts > 0):
        axes.rectangle(
            (float(x_edges[i]), float(x_edges[i + 1])),
            (float(y_edges[j]), float(y_edges[j + 1])),
            css,
            0.06 + 0.94 * float(np.sqrt(counts[i, j] / largest)),
        )


def histogram(groups: Mapping[str, np.ndarray], css: Sequence[str], title: str, x_label: str) -> Markup:
    """How several groups of values are spread, one over the other, each as the share of its own size.

    Args:
        groups: For every name its values (n,).
        css: The colour class of each.
        title: What is read out in place of the picture.
        x_label: Under the axis.
    """
    everything = np.concatenate(list(groups.values()))
    high = float(
        np.quantile(everything, 0.999)
    )  # few outliers would squeeze the rest; they count in the last bin
    edges = np.histogram_bin_edges(everything.clip(max=high), 40)
    shares = {name: np.histogram(v.clip(max=high), edges)[0] / max(len(v), 1) for name, v in groups.items()}
    top = max(float(s.max()) for s in shares.values())
    axes = Axes((float(edges[0]), float(edges[-1])), (0, 1.05 * top), x_label, "share of the group", title)
    for share, colour in zip(shares.values(), css, strict=True):
        xs = np.repeat(edges, 2)
        ys = np.concatenate([[0], np.repeat(share, 2), [0]])
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(axes.px(xs), axes.py(ys), strict=True))
        axes.parts.append(f'<polygon class="area {colour}" points="{points}"/>')
    names = [f"{name}: {len(v)}, mean {v.mean():.2f}" for name, v in groups.items()]
    return legend(names, css) + axes.svg(y_text=percent)


def stacked(groups: Mapping[str, np.ndarray], css: Sequence[str], title: str, bins: int = 8) -> Markup:
    """Of the examples with about the same value, the share that is of each group: a spinogram.

    Args:
        groups: For every name its values (n,).
        css: The colour class of each.
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
    axes = Axes((0, 1), (0, 1), "weight λ", "share of the bar", title)
    gap = 0.004
    for i, row in enumerate(counts):
        tops = np.concatenate([[0.0], row.cumsum() / row.sum()])
        for j, colour in enumerate(css):
            sides = (float(edges[i]) + gap, max(float(edges[i + 1]) - gap, float(edges[i]) + gap))
            axes.rectangle(sides, (float(tops[j]), float(tops[j + 1])), f"bar {colour}")
    least = [float(values[bar_of_value == i][0]) for i in range(len(counts))]
    ticks = list(zip(edges.tolist(), [*least, float(values[-1])], strict=True))
    return legend(list(groups), css) + axes.svg(y_text=percent, x_ticks=ticks)
