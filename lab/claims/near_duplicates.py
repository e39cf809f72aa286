"""Are near duplicates found, and nothing else? Digits, and CIFAR-10 by pixels and by an encoder's features.

    python -m lab.claims.near_duplicates [--cifar10 DIR] [--encoder DIR] [--imdb DIR]

Digits: the near-duplicates of ``CorruptedDigits``, half of the pool, five seeds. CIFAR-10, given by --cifar10: 5,000
images, 400 of them once more as JPEG of quality 60 to 90, shifted by a pixel, 5 % brighter or darker at most, and scaled
to 28 pixels and back; and 1,000 that are not among the 5,000, none of which should be found. With --encoder, what
``python -m lab.efficientnet`` wrote, the same by the cosine of its features at 96 pixels, from two thresholds,
chosen on the first 6,000 images and shown on 6,000 others, as digits 5 to 9 and 0 to 4 are. Last, the test images
that have a near duplicate among the first 40,000 training images. With --imdb, the folder ``aclImdb``, the same of 5,000
reviews, 400 of them with 1 % of their letters changed, without their last tenth, in capitals without punctuation, and
without every 20th word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lab.embedded_images import features_of
from ssl_weighting.data.cifar10 import Cifar10
from ssl_weighting.data.corrupted import KINDS, CorruptedDigits
from ssl_weighting.data.near_duplicates import (
    ALIKE,
    described,
    find_pairs,
    nearest,
    of_images,
    of_texts,
    of_vectors,
)

KNOWN = {"chosen on": [5, 6, 7, 8, 9], "shown on": [0, 1, 2, 3, 4]}
FIRST = {"chosen on": 0, "shown on": 10_000}
REFERENCE, COPIED, OTHERS, POOL = 5000, 400, 1000, 40_000


def digits(known: list[int], seed: int) -> tuple[float, float]:
    """Precision and recall, shares, of near duplicates in a pool of which half are."""
    data = CorruptedDigits(
        num_labeled=10,
        num_validation=100,
        known_classes=known,
        pool_classes=[10 + KINDS.index("near-duplicates")],
        foreign_fraction=0.5,
        split_seed=seed,
    )
    data.setup("fit")
    descriptors = described(data.sets)
    assert not isinstance(descriptors, str)
    pool = descriptors.rows["unlabeled"]
    found = torch.isin(
        pool, torch.cat([some.rows for some in find_pairs(descriptors) if some.part == "unlabeled"])
    )
    images = data.sets["unlabeled"].source.fetch(pool).flatten(1).int()  # type: ignore[union-attr]
    copies = data.sets["unlabeled"].source.labels[pool] == data.pool_classes[0]
    # An original that is in the pool itself is one too: each of its copies lies within two grey levels of it.
    away = torch.stack([(image - images[copies]).abs().amax(1).min() for image in images])
    true = copies | (away <= 2)
    return float(true[found].float().mean()), float(found[true].float().mean())


def jpeg(images: Tensor, draw: np.random.Generator) -> Tensor:
    """uint8 (n, 3, H, W), each once through JPEG of a quality from 60 to 90."""
    made = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=int(draw.integers(60, 91)))
        made.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(made)


def shifted(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Moved by a pixel in one of eight directions; the edge is repeated."""
    ways = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    padded, (height, width) = F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), images.shape[-2:]
    moved = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, draw.choice(ways, len(images)), strict=True)
    ]
    return torch.stack(moved).to(torch.uint8)


def brighter(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Pixels times 0.95 to 1.05."""
    factors = torch.from_numpy(draw.uniform(0.95, 1.05, (len(images), 1, 1, 1))).float()
    return (images * factors).round().clamp(0, 255).to(torch.uint8)


def resized(images: Tensor, draw: np.random.Generator) -> Tensor:
    """To 28 pixels a side and back."""
    small = F.interpolate(images.float(), size=28, mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[-1], mode="bilinear").round().clamp(0, 255).to(torch.uint8)


MADE: Mapping[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "JPEG, quality 60 to 90": jpeg,
    "shifted by a pixel": shifted,
    "brightness ± 5 %": brighter,
    "28 pixels and back": resized,
}


def cosines(images: Tensor, descriptors: Callable[[Tensor], Tensor], seed: int) -> dict[str, Tensor]:
    """Largest cosine with a reference image, of images that are not among them (``none``) and by kind of copy."""
    keys = descriptors(images[:REFERENCE])
    found = {"none": nearest(descriptors(images[REFERENCE : REFERENCE + OTHERS]), keys)[0]}
    for number, (kind, make) in enumerate(MADE.items()):
        copies = make(images[:COPIED], np.random.default_rng([seed, number]))
        found[kind] = nearest(descriptors(copies), keys)[0]
    return found


def thresholds(found: Mapping[str, Tensor]) -> dict[str, float]:
    """That of the largest F1, others counting as many as copies of one kind; and that which finds 1 % of the others."""
    positive = torch.cat([some for kind, some in found.items() if kind != "none"])
    tried = torch.unique(torch.cat((positive, found["none"])))
    false = COPIED / OTHERS * torch.stack([(found["none"] >= t).sum() for t in tried])
    true = torch.stack([(positive >= t).sum() for t in tried])
    best = float(tried[(2 * true / (true + false + len(positive))).argmax()])
    return {"of the largest F1": best, "that finds 1 % of the others": float(found["none"].quantile(0.99))}


def cifar10(images: Tensor, encoder: str | None) -> None:
    """Print precision and recall by kind of copy, and the cosines that a threshold was chosen from."""
    means: list[Tensor] = []

    def by_features(some: Tensor) -> Tensor:
        features = features_of(some, str(encoder))
        means[:] = means or [features.mean(0)]
        return of_vectors(features, means[0])

    for name, descriptors in (("pixels", of_images), ("features", by_features)):
        if name == "features" and encoder is None:
            continue
        chosen = {"of this program": ALIKE["images"]}
        for seed, (use, first) in enumerate(FIRST.items()):
            means.clear()
            found = cosines(images[first : first + REFERENCE + OTHERS], descriptors, seed)
            chosen = thresholds(found) if name == "features" and not seed else chosen
            for which, threshold in chosen.items():
                print(f"CIFAR-10 by {name}, {use} images from {first:,}; threshold {which}, {threshold:.3f}")
                for kind, some in found.items():
                    _print_kind(kind, some, found["none"], threshold)


def _print_kind(kind: str, found: Tensor, none: Tensor, threshold: float) -> None:
    low, middle, high = (float(found.quantile(q)) for q in (0.01, 0.5, 0.99))
    line = f"  {kind:24} cosine, 1st, 50th, 99th percentile {low:.4f} {middle:.4f} {high:.4f}"
    if kind == "none":
        print(
            f"{line}, largest {float(none.max()):.4f}; found {int((none >= threshold).sum())} of {OTHERS:,}"
        )
        return
    true, false = float((found >= threshold).float().mean()), float((none >= threshold).float().mean())
    print(f"{line}; precision {true / max(true + false, 1e-9):.3f} recall {true:.3f}")


def leaked(data: Cifar10) -> None:
    """Print how many test images have a near duplicate in training."""
    test = of_images(data.load(train=False).inputs)
    found, _ = nearest(test, of_images(data.load(train=True).inputs[:POOL]))
    count = int((found >= ALIKE["images"]).sum())
    print(
        f"CIFAR-10: {count:,} of {len(test):,} test images are near duplicates of the first {POOL:,} to train on"
    )


def typos(text: str, draw: np.random.Generator) -> str:
    """Every 100th letter another, on average."""
    other = draw.choice([*"abcdefghijklmnopqrstuvwxyz"], len(text))
    changed = draw.random(len(text)) < 0.01
    return "".join(o if c else t for t, o, c in zip(text, other, changed, strict=True))


EDITED: Mapping[str, Callable[[str, np.random.Generator], str]] = {
    "1 % of letters changed": typos,
    "last tenth cut": lambda text, _: text[: len(text) * 9 // 10],
    "capitals, no punctuation": lambda text, _: "".join(c if c.isalnum() else " " for c in text.upper()),
    "words left out, 5 %": lambda text, draw: " ".join(w for w in text.split() if draw.random() >= 0.05),
}


def imdb(folder: Path) -> None:
    """Print precision and recall by kind of edit, as :func:`cifar10` does."""
    paths = sorted(folder.glob("train/*/*.txt"))
    texts = [path.read_text(encoding="utf-8") for path in paths if path.parent.name in ("pos", "neg")]
    order = np.random.default_rng(0).permutation(len(texts))
    for seed, (use, first) in enumerate(FIRST.items()):
        some = [texts[row] for row in order[first : first + REFERENCE + OTHERS]]
        keys, draw = of_texts(some[:REFERENCE]), np.random.default_rng(seed)
        none = nearest(of_texts(some[REFERENCE:]), keys)[0]
        print(f"IMDB, {use} reviews from {first:,}; threshold of this program, {ALIKE['texts']:.3f}")
        _print_kind("none", none, none, ALIKE["texts"])
        for kind, edit in EDITED.items():
            found = nearest(of_texts([edit(text, draw) for text in some[:COPIED]]), keys)[0]
            _print_kind(kind, found, none, ALIKE["texts"])


def main(argv: list[str]) -> int:
    """Print all of it; returns the exit status, 0."""
    parser = argparse.ArgumentParser(prog="python -m lab.claims.near_duplicates", description=__doc__)
    parser.add_argument("--cifar10", type=Path, help="folder of CIFAR-10; without it, digits alone")
    parser.add_argument("--encoder", help="folder of an encoder")
    parser.add_argument("--imdb", type=Path, help="folder of IMDB's reviews")
    options = parser.parse_args(argv)
    for use, known in KNOWN.items():
        precision, recall = np.mean([*map(partial(digits, known), range(5))], 0)
        print(f"digits {known[0]} to {known[-1]}, {use}: precision {precision:.4f} recall {recall:.4f}")
    if options.cifar10 is not None:
        data = Cifar10(options.cifar10, verify_checksum=False)
        cifar10(data.load(train=True).inputs, options.encoder)
        leaked(data)
    if options.imdb is not None:
        imdb(options.imdb)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
