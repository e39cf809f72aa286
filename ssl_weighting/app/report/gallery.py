"""The examples that stand out, as cards."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ssl_weighting.app.examples import names, on_one_line, pictures
from ssl_weighting.app.report.charts import short
from ssl_weighting.app.report.weight_charts import GROUPS
from ssl_weighting.app.runs import Run

if TYPE_CHECKING:
    from ssl_weighting.data.module import SSLData

LONGEST_TEXT = 1200
PIXELATED = 64
"""Pixels of the longer side, up to which pictures are shown pixel by pixel."""


@dataclass(frozen=True)
class Card:
    """An example in the gallery.

    Attributes:
        text: Its path or text.
        picture: An image as a data address, or nothing.
        small: Whether its pixels are to be seen.
        facts: What is known of it.
        group: One of ``GROUPS``.
    """

    text: str
    picture: str
    small: bool
    facts: list[tuple[str, str]]
    group: str


@dataclass(frozen=True)
class Gallery:
    """Cards side by side.

    Attributes:
        title: Of all.
        order: How they are ordered.
        cards: The examples.
        none: What is said where there are none.
    """

    title: str
    order: str
    cards: list[Card]
    none: str


def cards(
    run: Run, data: SSLData | None, classes: list[str], groups: dict[str, np.ndarray], positions: np.ndarray
) -> list[Card]:
    """Examples as cards.

    Args:
        run: The run.
        data: Its data module, set up, if it is to be had.
        classes: Names of the classes, as far as they are known.
        groups: See :func:`ssl_weighting.app.report.weight_charts.groups_of`.
        positions: (n,) int64, in the unlabelled list.
    """
    rows = run.weights.take(positions).to_pylist()
    texts = [f"row {row['index']}" for row in rows] if data is None else names(data, positions)
    images = None if data is None else pictures(data, positions)
    made = []
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        group = next(GROUPS[name] for name, mask in groups.items() if mask[positions[i]])
        facts = [("weight", f"{row['weight']:.3f}"), ("influence", short_or_none(row["influence"]))]
        if row["pseudo_label"] is not None:
            confidence = f"{100 * row['confidence']:.0f}\N{NO-BREAK SPACE}%"
            facts.append(("taken for", f"{_class(classes, row['pseudo_label'])} ({confidence})"))
        if row["label"] is not None:
            facts.append(("label given" if group == "given" else "really", _class(classes, row["label"])))
        address = _data_address(images[i]) if images else ""
        made.append(Card(_cut(text), address, address.startswith("data:image/png"), facts, group))
    return made


def short_or_none(value: float | None) -> str:
    """A number, or a dash."""
    return "-" if value is None else short(float(f"{value:.2g}"))


def _class(names: list[str], number: int) -> str:
    return on_one_line(names[number], 60) if 0 <= number < len(names) else f"class {number}"


def _cut(text: str) -> str:
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def _data_address(picture: Image.Image) -> str:
    """A picture inside an address: a small one as it is, a larger one as a photograph."""
    file, kind = BytesIO(), "png" if max(picture.size) <= PIXELATED else "jpeg"
    picture.save(file, kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
