"""``report.html``: one run on one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssl_weighting.app.examples import extremes, none_stands_out, pictured
from ssl_weighting.app.findings import LABELS, NEAR_DUPLICATES
from ssl_weighting.app.report.charts import Series, curves, legend
from ssl_weighting.app.report.facts import configuration, judges, split_facts, tiles, timing_facts, what
from ssl_weighting.app.report.gallery import Gallery, cards, doubtful_cards, pairs_of_cards
from ssl_weighting.app.report.weight_charts import GROUPS, JUDGED, group_table, groups_of, weight_charts
from ssl_weighting.app.runs import OWN, Run
from ssl_weighting.data.near_duplicates import counted, leaks
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

if TYPE_CHECKING:
    from ssl_weighting.data.module import SSLData

GALLERY, PAIRS = 16, 4
"""Examples of each kind in the gallery; near duplicates of each pair of parts."""
BY_NUMBER = '<meta name="examples" content="numbers">'
"""In the head of a page without pictures and texts."""


def write_page(run: Run, data: SSLData | None = None) -> Path:
    """Write ``report.html`` into a run's folder; one that is there is drawn anew, unless it shows more.

    Args:
        run: The run.
        data: Its data module, set up, if it is at hand; otherwise it is built from the run's configuration. Where the
            data are not to be had, the page says so and shows row numbers in place of pictures and texts.

    Returns:
        The page's path.

    Raises:
        UserError: If a file of the run is missing or damaged, or if the page that is there shows pictures or texts, and
            the new one could not.
    """
    missing = ""
    if data is None:
        try:
            data = run.data()
        except UserError as error:
            missing = str(error)
    path = run.directory / "report.html"
    if missing and path.is_file() and BY_NUMBER not in _start(path):
        raise UserError(
            f"{path}: stays as it is, since a page of now would name the examples by number only ({missing}); move it "
            "away to have one drawn"
        )
    page = render(run, data, missing)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _start(page: Path) -> str:
    """The start of a page that is there, before anything that is in the data."""
    with page.open("rb") as file:
        return file.read(1000).decode(errors="replace")


def render(run: Run, data: SSLData | None, missing: str = "") -> str:
    """The page as HTML.

    Args:
        run: The run.
        data: Its data module, set up, if it is to be had.
        missing: Why it is not.
    """
    names = data.class_names if data is not None else []
    known = data.num_classes if data is not None else None
    groups = groups_of(run, known)
    files = pictured(data) if data is not None else None
    environment = Environment(
        loader=PackageLoader("ssl_weighting.app.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("page.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        style=Markup(style),  # ours; the digest allows this text and no other
        style_digest=digest,
        run=run,
        seed=run.config.get("seed_everything"),
        written=time.strftime("%Y-%m-%d %H:%M"),
        tiles=tiles(run),
        charts=_training_charts(run, judged=not JUDGED.keys().isdisjoint(groups)),
        judges=judges(run),
        weight_charts=weight_charts(run, groups),
        group_table=group_table(run, groups),
        group_legend=legend(list(groups), [GROUPS[name] for name in groups]) if len(groups) > 1 else "",
        missing=missing,
        galleries=_galleries(run, data, names, groups),
        doubtful=doubtful_cards(data, run.doubtful_labels, GALLERY),
        labels_file=LABELS,
        duplicates=_duplicates(run, data),
        what=what(run),
        split=split_facts(run, names, files.folder if files is not None else ""),
        timing=timing_facts(run),
        configuration=configuration(run),
    )


def _duplicates(run: Run, data: SSLData | None) -> dict[str, object] | None:
    """What the page says of near duplicates; nothing where they were not looked for."""
    found = run.near_duplicates
    if found is None:
        return None
    if data is not None and data.has_test and any(some.part == "test" for some in found):
        with suppress(UserError):  # shown by number
            data.setup("test")
    return {
        "said": "; ".join(counted(found)),
        "leaks": leaks(found),
        "pairs": pairs_of_cards(data, found, PAIRS),
        "file": NEAR_DUPLICATES,
    }


def _galleries(
    run: Run, data: SSLData | None, names: list[str], groups: dict[str, np.ndarray]
) -> list[Gallery]:
    """The most foreign examples, where a run says so; the most harmful and the most helpful ones, if a weight moved."""
    initial = run.initial_weight
    galleries = []
    if OWN in run.weights.column_names:
        own = run.weights[OWN].to_numpy()
        galleries = [
            Gallery(
                "Most foreign",
                f"least likely to be of one of the classes first; about {1 - own.mean():.0%} of the pool are not",
                cards(run, data, names, groups, np.argsort(own, kind="stable")[:GALLERY]),
                "",
            )
        ]
    found = extremes(run.weights, GALLERY, initial, spread=True)
    if not any(map(len, found)):
        return galleries
    return galleries + [
        Gallery(
            f"Most {kind}",
            f"{weight} weight first; of each class that they are taken for in turn",
            cards(run, data, names, groups, positions),
            none_stands_out(kind, run.weights, initial),
        )
        for kind, weight, positions in zip(("harmful", "helpful"), ("least", "most"), found, strict=True)
    ]


def _training_charts(run: Run, judged: bool) -> list[tuple[str, str, Markup]]:
    """Title, explanation and picture of everything that was logged along the way.

    Args:
        run: The run.
        judged: Whether there are labels to judge by that training did not see.
    """

    def some(names: Mapping[str, str]) -> Series:
        return {shown: run.metrics[name] for name, shown in names.items() if name in run.metrics}

    terms = {
        name: name.removeprefix("train/")
        for name in run.metrics
        if name.startswith("train/") and name not in ("train/loss", "train/lr") and not name.endswith("_mask")
    }
    masks = {
        name: name.removeprefix("train/").removesuffix("_mask")
        for name in run.metrics
        if name.startswith("train/") and name.endswith("_mask")
    }
    errors = some({"validation/error": "validation", "test/error": "test"})
    evaluated = some({"validation/loss": "validation", "test/loss": "test"})
    charts = [
        (
            "Error",
            "Of the averaged model, in brackets the last.",
            curves(errors, "Error over training", "error", True),
        ),
        (
            "Loss, evaluated",
            "Cross-entropy of the averaged model.",
            curves(evaluated, "Loss over training", "nats"),
        ),
        (
            "Loss, trained",
            "Of single batches: the whole, and its terms with their weights.",
            curves(some({"train/loss": "whole"} | terms), "Training loss over training", "loss"),
        ),
    ]
    if influence := some({"influence/harmful": "harmful"}):
        charts.append(
            (
                "Harmful examples",
                f"Share of each Λ step's examples whose influence raises the loss on {judges(run)}.",
                curves(influence, "Share of harmful examples over training", "share", True),
            )
        )
    if masks:
        charts.append(
            (
                "Examples that count",
                "Share of each batch that is confident enough to be trained on.",
                curves(some(masks), "Share of confident examples over training", "share", True),
            )
        )
    aurocs = some(
        {
            "pool/right_auroc_weight": "right from wrong, by weight",
            "pool/right_auroc_confidence": "right from wrong, by confidence",
            "pool/own_auroc_weight": "own from foreign, by weight",
            "pool/own_auroc_confidence": "own from foreign, by confidence",
        }
    )
    if aurocs and judged:
        charts.append(
            (
                "Telling good from bad",
                "Area under the ROC curve, by labels that training did not see; 0.5 is chance.",
                curves(aurocs, "Area under the ROC curve over training", "AUROC"),
            )
        )
    return charts
