"""The examples that stand out, as cards."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_weighting.app.examples import names, names_of, on_one_line, pictures, pictures_of
from ssl_weighting.app.report.charts import short
from ssl_weighting.app.report.weight_charts import GROUPS
from ssl_weighting.app.runs import OWN, Run
from ssl_weighting.data.near_duplicates import NAMES, Pairs

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
        if OWN in row:
            facts.append(("own", _percent(row[OWN])))
        if row["pseudo_label"] is not None:
            confidence = f"{100 * row['confidence']:.0f}\N{NO-BREAK SPACE}%"
            facts.append(("taken for", f"{_class(classes, row['pseudo_label'])} ({confidence})"))
        if row["label"] is not None:
            facts.append(("label given" if group == "given" else "really", _class(classes, row["label"])))
        address = _data_address(images[i]) if images else ""
        made.append(Card(_cut(text), address, address.startswith("data:image/png"), facts, group))
    return made


@dataclass(frozen=True)
class PairOfCards:
    """Two near duplicates side by side.

    Attributes:
        cards: Both, each with the part that it belongs to.
        similarity: Of the two, as a text.
    """

    cards: tuple[Card, Card]
    similarity: str


EXCERPT = 300
"""Characters of a text that stands beside another."""


def pairs_of_cards(data: SSLData | None, pairs: Sequence[Pairs], count: int) -> list[PairOfCards]:
    """Near duplicates side by side: of each pair of parts the least similar ones, which are the doubtful ones.

    Args:
        data: The run's data module, set up, if it is to be had.
        pairs: What was found.
        count: How many of each pair of parts, at most.
    """
    made = []
    for some in pairs:
        shown: dict[tuple[int, ...], float] = {}
        for row, other, cosine in zip(*(values.flip(0).tolist() for values in some[2:]), strict=True):
            two = (row, other) if some.part != some.near else (min(row, other), max(row, other))
            shown.setdefault(two, cosine)  # of two inside one part each is the other's nearest
        chosen = [*shown][:count]
        left, right = (
            plain_cards(data, part, torch.tensor(rows))
            for part, rows in zip((some.part, some.near), zip(*chosen, strict=True), strict=True)
        )
        made += [
            PairOfCards((one, other), f"{shown[two]:.3f}")
            for one, other, two in zip(left, right, chosen, strict=True)
        ]
    return made


def plain_cards(data: SSLData | None, part: str, rows: Tensor) -> list[Card]:
    """Examples of any part as cards, without facts.

    Args:
        data: The run's data module, set up, if it is to be had.
        part: Of the data.
        rows: (n,) int64, in the part's source.
    """
    texts, images = [f"row {row}" for row in rows.tolist()], None
    if data is not None and part in data.sets:
        source = data.sets[part].source
        texts, images = names_of(source, rows), pictures_of(data, source, rows)
    addresses = [_data_address(image) for image in images] if images else [""] * len(texts)
    return [
        Card(
            _cut(text, EXCERPT),
            address,
            address.startswith("data:image/png"),
            [("part", NAMES[part])],
            "given",
        )
        for text, address in zip(texts, addresses, strict=True)
    ]


def doubtful_cards(data: SSLData | None, labels: Sequence[Mapping[str, str]], count: int) -> list[Card]:
    """Labels to which another class is preferred, the most doubtful first.

    Args:
        data: The run's data module, set up, if it is to be had.
        labels: Rows of :attr:`~ssl_weighting.app.runs.Run.doubtful_labels`.
        count: How many, at most.
    """
    contradicted = [row for row in labels if float(row["likelier_probability"]) > float(row["probability"])][
        :count
    ]
    made = []
    for row in contradicted:
        (card,) = plain_cards(data, row["part"], torch.tensor([int(row["index"])]))
        facts = [
            ("label given", f"{row['label']} ({_percent(row['probability'])})"),
            ("rather", f"{row['likelier']} ({_percent(row['likelier_probability'])})"),
        ]
        made.append(dataclasses.replace(card, facts=facts))
    return made


def _percent(share: str | float) -> str:
    return f"{100 * float(share):.0f}\N{NO-BREAK SPACE}%"


def short_or_none(value: float | None) -> str:
    """A number, or a dash."""
    return "-" if value is None else short(float(f"{value:.2g}"))


def _class(names: list[str], number: int) -> str:
    return on_one_line(names[number], 60) if 0 <= number < len(names) else f"class {number}"


def _cut(text: str, length: int = LONGEST_TEXT) -> str:
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= length else text[:length] + "…"


def _data_address(picture: Image.Image) -> str:
    """A picture inside an address: a small one as it is, a larger one as a photograph."""
    file, kind = BytesIO(), "png" if max(picture.size) <= PIXELATED else "jpeg"
    picture.save(file, kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
