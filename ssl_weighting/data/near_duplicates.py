"""The same example again, slightly changed: nearest neighbours by what is seen or read, not by an encoder's features."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from ssl_weighting.data.source import ExampleSet
from ssl_weighting.data.split import Split
from ssl_weighting.errors import DataWarning, UserError

MOST = 50_000
"""Examples that are compared, each with each; of more it would take many minutes."""
ALIKE = {"images": 0.99, "texts": 0.9, "vectors": 0.995}
"""Cosines from which on two descriptors are those of near duplicates."""
CELLS, COLOURS = 8, 2
"""Cells a side of the grey picture that an image is compared by, and of its colours."""
BUCKETS = 1024
"""Numbers that the pieces of a text are hashed to. Those of different texts meet at ±1/√1024 of the cosine."""
FEWEST = 32
"""Numbers of a vector below which it may well point where another does by chance."""
PARTS = ("labeled", "validation", "unlabeled", "test")
"""Of the data, in the order in which one is looked up in another."""
BLOCK, FETCHED = 2048, 500


def nearest(queries: Tensor, keys: Tensor, same: bool = False) -> tuple[Tensor, Tensor]:
    """The most similar key of each query; blockwise, in memory that grows with n and m, not with their product.

    Args:
        queries: (m, K', D) float32 descriptors, of length 1 or 0. The middle one of the K' is looked up.
        keys: (n, K, D), n ≥ 1; the best of the K counts.
        same: Whether they are the queries: no example is its own neighbour.

    Returns:
        Cosines (m,) float32, and which key, (m,) int64. −1, where ``same`` leaves none.
    """
    looked_up = queries[:, queries.shape[1] // 2]
    best = torch.full((len(looked_up),), -1.0)
    which = torch.full((len(looked_up),), -1)
    for start in range(0, len(looked_up), BLOCK):
        rows = slice(start, start + BLOCK)
        for first in range(0, len(keys), BLOCK):
            block = keys[first : first + BLOCK]
            cosines = (looked_up[rows] @ block[:, 0].T).clone()
            for k in range(1, block.shape[1]):
                torch.maximum(cosines, looked_up[rows] @ block[:, k].T, out=cosines)
            if same and first == start:
                cosines.fill_diagonal_(-2.0)
            value, place = cosines.max(1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            which[rows] = torch.where(better, place + first, which[rows])
    return best, which


def of_images(images: Tensor) -> Tensor:
    """Descriptors (n, K, D) float32 of images (n, C, H, W), C = 1 or 3, of any range of values.

    The grey picture in 8×8 cells, of mean 0, and what the colours of 2×2 cells add to it; of length 1, so that neither
    brightness nor contrast counts, and 0 for an image of one grey. Images of 16 pixels a side and more are described
    nine times, K = 9, shifted by up to a 32nd of their side.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    margin = max(1, side // 32) if side >= 16 else 0
    shifts = (
        [(y, x) for y in (0, margin, 2 * margin) for x in (0, margin, 2 * margin)] if margin else [(0, 0)]
    )
    found = []
    for y, x in shifts:
        shown = images[..., y : y + height - 2 * margin, x : x + width - 2 * margin].float()
        grey = rgb_to_grayscale(shown) if shown.shape[1] == 3 else shown
        cells = F.adaptive_avg_pool2d(grey, CELLS).flatten(1)
        cells = cells - cells.mean(1, keepdim=True)
        colours = F.adaptive_avg_pool2d(shown - grey, COLOURS).flatten(1) * (CELLS / COLOURS)
        # All blue skies have much colour and little else in common: of length 1/2 it tells red from green, and no more.
        most = 0.5 * cells.norm(dim=1, keepdim=True)
        colours = colours * (most / colours.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        found.append(_of_length_1(torch.cat((cells, colours), 1)))
    return torch.stack(found, 1)


def of_texts(texts: Sequence[str]) -> Tensor:
    """Descriptors (n, 1, 1024) float32 of texts: how often pieces of 4 and 5 letters stand in them, hashed.

    Capitals and punctuation do not count. A text without letters and digits has length 0.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # slow to import

    hashing = HashingVectorizer(
        preprocessor=_words, analyzer="char_wb", ngram_range=(4, 5), n_features=BUCKETS
    )
    found = [
        torch.from_numpy(hashing.transform(texts[start : start + BLOCK]).toarray()).float()
        for start in range(0, len(texts), BLOCK)
    ]
    return torch.cat(found or [torch.zeros(0, BUCKETS)])[:, None]


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def of_vectors(vectors: Tensor, mean: Tensor) -> Tensor:
    """Descriptors (n, 1, D) float32 of vectors (n, D): their directions from a mean (D,)."""
    return _of_length_1(vectors.float() - mean)[:, None]


def _of_length_1(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, eps=1e-6)


class Descriptors(NamedTuple):
    """Examples as they are compared.

    Attributes:
        kind: One of :data:`ALIKE`.
        parts: (n, K, D) float32 by the part's name, none of them empty.
        rows: (n,) int64, rows of the part's source.
    """

    kind: str
    parts: dict[str, Tensor]
    rows: dict[str, Tensor]


def described(sets: Mapping[str, ExampleSet]) -> Descriptors | str:
    """All parts of a data set as they are compared, or why they are not. The labelled examples in the pool count once.

    Args:
        sets: By the names of :data:`PARTS`; some may be missing.
    """
    rows = {name: sets[name].rows for name in PARTS if name in sets}
    if "labeled" in rows:
        given = torch.cat([rows[name] for name in ("labeled", "validation") if name in rows])
        rows["unlabeled"] = rows["unlabeled"][~torch.isin(rows["unlabeled"], given)]
    rows = {name: some for name, some in rows.items() if len(some)}
    count = sum(map(len, rows.values()))
    if count > MOST:
        return f"not looked for among {count:,} examples, more than {MOST:,}"
    if any(hasattr(sets[name].source, "reader") for name in rows):
        return "not looked for in a pool that streams"
    sources = {name: sets[name].source for name in rows}
    first = next(iter(rows))
    raw: Any = sources[first].fetch(rows[first][:1])
    if isinstance(raw, Mapping) and "words" in raw:
        texts = {name: of_texts(sources[name].describe(some)) for name, some in rows.items()}
        return Descriptors("texts", texts, rows)
    if not isinstance(raw, Tensor) or raw.is_complex():
        return "not looked for in inputs of this kind"

    def fetched(name: str) -> Iterator[Tensor]:
        for some in torch.split(rows[name], FETCHED):
            yield sources[name].fetch(some)  # type: ignore[misc]

    if raw.dim() == 4 and raw.shape[1] in (1, 3):
        images = {name: torch.cat([of_images(batch) for batch in fetched(name)]) for name in rows}
        return Descriptors("images", images, rows)
    if raw[0].numel() < FEWEST:
        return f"not looked for in inputs of {raw[0].numel()} numbers, fewer than {FEWEST}"
    vectors = {name: torch.cat([batch.flatten(1).float() for batch in fetched(name)]) for name in rows}
    mean = torch.cat(list(vectors.values())).mean(0)
    return Descriptors("vectors", {name: of_vectors(some, mean) for name, some in vectors.items()}, rows)


class Pairs(NamedTuple):
    """Near duplicates of two parts, or of one.

    Attributes:
        part: Whose examples were looked up.
        near: Where.
        rows: (n,) int64, those of ``part`` that have a near duplicate, as rows of the source.
        nearest: (n,) int64, the most similar one, a row of the source of ``near``.
        cosines: (n,) float32, falling.
    """

    part: str
    near: str
    rows: Tensor
    nearest: Tensor
    cosines: Tensor

    @classmethod
    def of(cls, part: str, near: str, found: Sequence[tuple[int, int, float]]) -> Pairs:
        """From a row, the one near it and their cosine, of each."""
        rows, nearest, cosines = zip(*found, strict=True)
        return cls(part, near, torch.tensor(rows), torch.tensor(nearest), torch.tensor(cosines))


def find_pairs(descriptors: Descriptors) -> list[Pairs]:
    """Near duplicates between all parts and within each, those of no examples left out."""
    found = []
    for near, part in combinations_with_replacement([name for name in PARTS if name in descriptors.parts], 2):
        cosines, which = nearest(descriptors.parts[part], descriptors.parts[near], same=part == near)
        alike = (cosines >= ALIKE[descriptors.kind]).nonzero().flatten()
        alike = alike[cosines[alike].argsort(descending=True, stable=True)]
        if len(alike):
            rows = descriptors.rows[part][alike]
            found.append(Pairs(part, near, rows, descriptors.rows[near][which[alike]], cosines[alike]))
    return found


NAMES = {"labeled": "labelled", "validation": "validation", "unlabeled": "pool", "test": "test"}


def counted(pairs: Sequence[Pairs]) -> list[str]:
    """How many near duplicates there are, a phrase each kind: what flatters an error first.

    Args:
        pairs: See :func:`find_pairs`.
    """
    order = [*combinations_with_replacement(reversed(PARTS), 2)]
    phrases = []
    for some in sorted(pairs, key=lambda some: (some.part == some.near, order.index((some.part, some.near)))):
        count, pool = len(some.rows), some.part == "unlabeled"
        what = "of the pool" if pool else f"{NAMES[some.part]} example{'s' * (count != 1)}"
        where = "in the pool" if some.near == "unlabeled" else f"among the {NAMES[some.near]} examples"
        if some.part == some.near:
            what, where = "inside", "the pool" if pool else f"the {NAMES[some.part]} examples"
        phrases.append(f"{count:,} {what} {where}")
    return phrases


def leaks(pairs: Sequence[Pairs]) -> int:
    """How many test examples have a near duplicate in the pool."""
    return sum(len(some.rows) for some in pairs if (some.part, some.near) == ("test", "unlabeled"))


def leaked(pairs: Sequence[Pairs], sets: Mapping[str, ExampleSet]) -> str:
    """A line that says how many test examples have a near duplicate in the pool; empty where none has.

    Args:
        pairs: See :func:`find_pairs`.
        sets: The parts.
    """
    for some in pairs:
        if (some.part, some.near) == ("test", "unlabeled"):
            parts = ((some.part, some.rows), (some.near, some.nearest))
            first, like = (sets[part].source.describe(rows[:1])[0][:200] for part, rows in parts)
            return (
                f"data: {len(some.rows):,} of {len(sets['test']):,} test examples are in the pool as well, or nearly so "
                f"(first: {first}, like {like}): the test error will be too kind; data.drop_test_leaks=true leaves them "
                "out of the pool"
            )
    return ""


def without_leaks(split: Split, sets: Mapping[str, ExampleSet]) -> Split:
    """A split whose pool holds near duplicates of test examples no more, unless labelled; says how many were dropped.

    Args:
        split: As it was drawn.
        sets: Its parts, and ``test``.

    Raises:
        UserError: If such examples are not compared, or none would be left.
    """
    descriptors = described({name: part for name, part in sets.items() if name != "validation"})
    if isinstance(descriptors, str):
        raise UserError(f"data.drop_test_leaks=true: near duplicates are {descriptors}; leave it out")
    dropped = split.unlabeled[:0]
    if "unlabeled" in descriptors.parts and "test" in descriptors.parts:
        cosines, _ = nearest(descriptors.parts["unlabeled"], descriptors.parts["test"])
        dropped = descriptors.rows["unlabeled"][cosines >= ALIKE[descriptors.kind]]
    kept = split.unlabeled[~torch.isin(split.unlabeled, dropped)]
    if len(kept) == len(split.labeled):
        raise UserError(
            f"data.drop_test_leaks=true: all {len(dropped):,} examples of the pool are near duplicates of test examples; "
            "give others, or leave it out"
        )
    warnings.warn(
        f"data.drop_test_leaks=true: {len(dropped):,} of {len(split.unlabeled):,} examples are left out of the pool, "
        "near duplicates of test examples",
        DataWarning,
        stacklevel=2,
    )
    return dataclasses.replace(split, unlabeled=kept, dropped=dropped.sort().values)
