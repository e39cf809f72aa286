"""Texts as features of a frozen sentence encoder, kept as ``.npz``: IMDB, six groups of 20 Newsgroups, Reuters R8."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.imdb import clean
from ssl_weighting.data.tokens import load_tokenizer
from ssl_weighting.precision import has_bfloat16

GROUPS = (
    "comp.graphics", "rec.autos", "rec.sport.hockey", "sci.med", "sci.space", "talk.politics.mideast",
)  # fmt: skip
"""The known ones of 20 Newsgroups, named before anything was run; the other fourteen are foreign."""
REUTERS = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
TRAIN, TEST, FOREIGN = 3200, 2000, 1100
"""Most texts of a part that are embedded."""
LENGTH, BATCH = 128, 32
"""Tokens of a text, of which the last are kept, as the project does by default; and texts of a pass."""
SEED = 0
Texts = tuple[list[str], np.ndarray]
"""Texts and their classes (n,) int64."""


def read_tab(path: Path) -> Texts:
    """Texts and categories (n,) of one of Orange's files: three header lines, then ``category <tab> text``."""
    lines = path.read_text(encoding="utf-8").split("\n")[3:]
    pairs = [line.split("\t", 1) for line in lines if line]
    return [text for _, text in pairs], np.array([category for category, _ in pairs])


def numbers(categories: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """Classes (n,) int64 of categories; −1 of those that are not known."""
    places = {name: place for place, name in enumerate(known)}
    return np.array([places.get(name, -1) for name in categories.tolist()], np.int64)


def parts(imdb: Path, orange: Path) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Every part's name, texts and classes: a fixed, seeded choice.

    Args:
        imdb: Folder of ``train.parquet`` and ``test.parquet``, with columns ``text`` and ``label``.
        orange: Folder of ``20newsgroups-*.tab`` and ``reuters-r8-*.tab``.
    """
    for part, size in (("train", TRAIN), ("test", TEST)):
        yield f"imdb-{part}", *reviews(imdb, part, size)
        for name, file, known in (("newsgroups", "20newsgroups", GROUPS), ("r8", "reuters-r8", REUTERS)):
            texts, categories = read_tab(orange / f"{file}-{part}.tab")
            classes = numbers(categories, known)
            yield f"{name}-{part}", *_some(texts, classes, size, classes >= 0)
            if name == "newsgroups" and part == "train":
                yield f"{name}-foreign", *_some(texts, classes, FOREIGN, classes < 0)


def reviews(imdb: Path, part: str, size: int) -> Texts:
    """At most so many of IMDB's reviews, and their classes: the same every time."""
    rows = pq.read_table(imdb / f"{part}.parquet")
    texts = clean(rows["text"].combine_chunks()).to_pylist()
    return _some(texts, rows["label"].to_numpy().astype(np.int64), size)


def _some(texts: list[str], classes: np.ndarray, size: int, kept: np.ndarray | None = None) -> Texts:
    rows = np.flatnonzero(np.ones(len(classes), bool) if kept is None else kept)
    rows = np.random.default_rng(SEED).permutation(rows)[:size]
    return [texts[row] for row in rows], classes[rows]


def fast() -> torch.autocast:
    """bfloat16 where the processor has units for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu"))


@torch.no_grad()
def features_of(texts: Sequence[str], encoder: Transformer, tokenizer: Any) -> np.ndarray:
    """Features (n, D) float32 of texts, the encoder being in evaluation mode; in bfloat16 where that is fast."""
    tokenizer.truncation_side = "left"
    ids = tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]
    order = np.argsort([len(own) for own in ids], kind="stable")
    found = np.empty((len(ids), encoder.feature_dim), np.float32)
    for start in range(0, len(ids), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with fast():
            found[rows] = encoder(dict(batch)).float().numpy()
    return found


def embed(imdb: Path, orange: Path, encoder: str, folder: Path) -> None:
    """Write the parts that are missing in a folder, and say how long each took."""
    folder.mkdir(parents=True, exist_ok=True)
    model = Transformer(encoder, dropout=0, pooling="mean", frozen=True).eval()
    tokenizer = load_tokenizer(encoder)
    for name, texts, classes in parts(imdb, orange):
        path = folder / f"{name}.npz"
        if path.exists():
            continue
        began = time.perf_counter()
        found = features_of(texts, model, tokenizer)
        partial = path.with_suffix(".part.npz")
        np.savez(partial, features=found, labels=classes)
        partial.rename(path)
        print(f"{name}: {len(texts)} texts, {time.perf_counter() - began:.0f} s", flush=True)
