"""Figures 1 and 2 of the paper: the decision boundary and the weights of the unlabelled points, over training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_weighting.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SHOWN = (0.05, 0.15, 0.3, 0.6, 1.0)
"""Shares of the run at which the picture shows it."""
MOMENTS = 30
"""Frames of the animation, besides the last."""
NEIGHBOURS = 15
Frames = dict[str, np.ndarray]


def read_frames(path: Path) -> Frames:
    """``boundary.npz``; see :class:`~ssl_weighting.app.callbacks.DecisionBoundary`.

    Raises:
        UserError: If it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); run the run again"
        ) from None


def draw_boundaries(arms: dict[str, Path]) -> Figure:
    """A picture grid: a row an arm, a column a moment, and the truth.

    Args:
        arms: Arm → its ``boundary.npz``, all of the same split.
    """
    from matplotlib.figure import Figure

    runs = {arm: read_frames(path) for arm, path in arms.items()}
    some = next(iter(runs.values()))
    truth = true_classes(some)
    figure = Figure(figsize=(2.1 * (len(SHOWN) + 1), 2.15 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), len(SHOWN) + 1, squeeze=False)
    for row, (arm, frames) in zip(axes, runs.items(), strict=True):
        for axis, share in zip(row, SHOWN, strict=False):
            frame = int(np.abs(frames["steps"] - share * frames["steps"][-1]).argmin())
            _draw_frame(axis, frames, frame, truth)
            axis.set_title(f"step {frames['steps'][frame]}: {_wrong(frames, frame)}", fontsize=8)
        row[0].set_ylabel(arm.replace("_", " "), fontsize=10)
        row[-1].set_axis_off()
    _draw_truth(axes[0, -1], some, truth)
    if len(runs) > 1:
        _explain(axes[1, -1])
    return figure


def animate_boundaries(arms: dict[str, Path], path: Path) -> None:
    """An animated WebP: all arms and the truth side by side, a frame a moment.

    Args:
        arms: Arm → its ``boundary.npz``, all of the same split and length.
        path: The file to write, whatever its ending.
    """
    from io import BytesIO

    from matplotlib.figure import Figure
    from PIL import Image

    runs = {arm: read_frames(file) for arm, file in arms.items()}
    some = next(iter(runs.values()))
    truth = true_classes(some)
    pictures = []
    last = len(some["steps"]) - 1
    for frame in [*range(0, last, max(1, last // MOMENTS)), last]:
        figure = Figure(figsize=(2.2 * (len(runs) + 1), 2.45), layout="constrained")
        axes = figure.subplots(1, len(runs) + 1)
        for axis, (arm, frames) in zip(axes, runs.items(), strict=False):
            _draw_frame(axis, frames, frame, truth)
            axis.set_title(f"{arm.replace('_', ' ')}: {_wrong(frames, frame)}", fontsize=8)
        _draw_truth(axes[-1], some, truth)
        axes[0].set_xlabel(f"step {some['steps'][frame]}", fontsize=8)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=80)
        pictures.append(Image.open(drawn).convert("RGB"))
    durations = [120] * (len(pictures) - 1) + [2500]
    pictures[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=30,
        method=4,
    )


def true_classes(frames: Frames) -> np.ndarray:
    """Classes of the grid, as one frame of ``classes``: a vote of the 15 nearest points whose label is known."""
    from sklearn.neighbors import KNeighborsClassifier

    known = frames["labels"] >= 0
    votes = KNeighborsClassifier(min(NEIGHBOURS, int(known.sum()))).fit(
        frames["points"][known], frames["labels"][known]
    )
    x, y = _grid(frames)
    classes: np.ndarray = votes.predict(np.stack((x.ravel(), y.ravel()), 1)).reshape(x.shape)
    return classes


def _grid(frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    side = frames["classes"].shape[-1]
    left, right, bottom, top = frames["extent"]
    x, y = np.meshgrid(np.linspace(left, right, side), np.linspace(bottom, top, side))
    return x, y


def _wrong(frames: Frames, frame: int) -> str:
    known = frames["labels"] >= 0
    wrong = (frames["guesses"][frame] != frames["labels"])[known].mean()
    return f"{100 * wrong:.1f} % wrong"


def _background(axis: Axes, frames: Frames, classes: np.ndarray) -> AxesImage:
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(
        classes,
        extent=tuple(frames["extent"]),
        origin="lower",
        cmap="coolwarm",
        alpha=0.25,
        vmin=0,
        vmax=1,
        aspect="auto",
    )


def _draw_frame(axis: Axes, frames: Frames, frame: int, truth: np.ndarray) -> None:
    """Regions and boundary of one moment; unlabelled points from pink (λ = 0) to black (λ = 2 and more)."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("weights", ["#ff8fc0", "#7d4a5f", "#000000"])
    x, y = _grid(frames)
    classes = frames["classes"][frame]
    _background(axis, frames, classes)
    axis.scatter(
        frames["points"][:, 0],
        frames["points"][:, 1],
        c=frames["weights"][frame],
        cmap=shades,
        vmin=0,
        vmax=2,
        s=3,
        linewidths=0,
    )
    for boundary, colour, style in ((truth, "#2a7f62", "dashed"), (classes, "#1b6ca8", "solid")):
        for level in np.unique(boundary)[1:]:
            axis.contour(x, y, boundary >= level, [0.5], colors=colour, linestyles=style, linewidths=1.3)
    _draw_labeled(axis, frames)


def _draw_labeled(axis: Axes, frames: Frames) -> None:
    for label in np.unique(frames["labeled_labels"]):
        mine = frames["labeled"][frames["labeled_labels"] == label]
        axis.scatter(
            mine[:, 0],
            mine[:, 1],
            color="#ff8c00",
            marker="os^Dv"[label % 5],
            s=28,
            edgecolors="black",
            linewidths=0.6,
        )


def _draw_truth(axis: Axes, frames: Frames, truth: np.ndarray) -> None:
    axis.set_axis_on()
    _background(axis, frames, truth)
    axis.scatter(
        frames["points"][:, 0], frames["points"][:, 1], c=frames["labels"], cmap="coolwarm", s=3, linewidths=0
    )
    _draw_labeled(axis, frames)
    axis.set_title("truth", fontsize=8)


def _explain(axis: Axes) -> None:
    from matplotlib.lines import Line2D

    def point(colour: str, label: str, size: float = 4) -> Line2D:
        return Line2D([], [], color=colour, marker="o", linestyle="none", markersize=size, label=label)

    handles = [
        Line2D([], [], color="#1b6ca8", label="decision boundary"),
        Line2D([], [], color="#2a7f62", linestyle="dashed", label="the true one"),
        point("#ff8c00", "labelled", 6),
        point("#ff8fc0", "unlabelled, λ = 0"),
        point("#7d4a5f", "unlabelled, λ = 1"),
        point("#000000", "unlabelled, λ ≥ 2"),
    ]
    axis.legend(handles=handles, loc="center", frameon=False, fontsize=8)
