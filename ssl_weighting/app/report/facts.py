"""Figures and facts of a run, as the page words them."""

from __future__ import annotations

from typing import Any

import yaml

from ssl_weighting.app.examples import on_one_line
from ssl_weighting.app.redact import without_secrets
from ssl_weighting.app.runs import Run

PHI = "weights/phi_"


def _newest(run: Run, name: str) -> float | None:
    return float(run.metrics[name][1][-1]) if name in run.metrics else None


def tiles(run: Run) -> list[tuple[str, str]]:
    """Value and name of the figures on top of the page."""
    weight, moved = run.weights["weight"].to_numpy(), int((run.weights["updates"].to_numpy() > 0).sum())
    steps = max((int(x[-1]) for x, _ in run.metrics.values()), default=0)
    figures = []
    for key, name in (("test/error", "test error"), ("validation/error", "validation error")):
        if (value := _newest(run, key)) is not None:
            figures.append((name, f"{100 * value:.2f} %"))
    figures += _baseline(run)
    figures.append(("θ steps", f"{steps:,} of {run.config['trainer'].get('max_steps', 0):,}"))
    figures.append(("unlabelled examples moved", f"{moved:,} of {len(weight):,}"))
    if moved:
        figures.append(("mean weight", f"{weight.mean():.3f}"))
        figures.append(("least and largest weight", f"{weight.min():.3f} … {weight.max():.3f}"))
    for name in (name for name in sorted(run.metrics) if name.startswith(PHI)):
        figures.append((f"φ of {name.removeprefix(PHI)}", f"{_newest(run, name):+.2f}"))
    if run.timing:
        figures.append(("training time", duration(run.timing["seconds"])))
    return figures


def _baseline(run: Run) -> list[tuple[str, str]]:
    """What the labels alone came to and, where the two were compared, how far the model with the pool is believed."""
    names = {
        "baseline/test_error": "labels only, test error",
        "baseline/error": "labels only, cross-validated",
        "pool/error": "with the pool, cross-validated",
        "pool/share": "share of the model with the pool",
    }
    found = ((name, _newest(run, key)) for key, name in names.items())
    return [
        (name, f"{100 * value:.{0 if 'share' in name else 2}f} %")
        for name, value in found
        if value is not None
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 7 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def what(run: Run) -> str:
    """The run in one line: method, weighting, influence where weights are learned, network, data."""
    model, data = run.config["model"], run.config["data"]

    def name(part: Any) -> str:
        return str(part.get("class_path", "")).rpartition(".")[2] if isinstance(part, dict) else ""

    weighting = model["weighting"]
    learned = weighting["kind"] != "fixed" and name(model.get("algorithm")) != "Supervised"
    parts = [name(model.get("algorithm"))]
    if learned:
        parts += [f"{weighting['kind']} weights", name(model.get("influence"))]
    elif weighting["kind"] == "fixed":
        parts.append(f"fixed weights λ = {weighting['init']:g}")
    return " · ".join(p for p in [*parts, name(model.get("backbone")), name(data)] if p)


def judges(run: Run) -> str:
    """Whom the weights are learned on, as a sentence names them."""
    return "the validation set" if len(run.split.validation) else "the labelled examples themselves"


def split_facts(run: Run, names: list[str], folder: str) -> list[tuple[str, str]]:
    """Which examples there are, where, and what tells split and data from others."""
    split = run.split
    facts = [
        ("data set", split.data_set),
        ("labelled", f"{len(split.labeled):,}"),
        ("validation", f"{len(split.validation):,}" if len(split.validation) else "none: all labels train"),
        ("unlabelled", f"{len(split.unlabeled):,}, the labelled ones among them"),
        *([] if split.dropped is None else [("dropped, like a test example", f"{len(split.dropped):,}")]),
        ("seed of the split", str(split.seed)),
        ("sha256 of the split", split.sha256()[:16] + "…"),
        ("sha256 of the data", split.checksum[:16] + "…"),
    ]
    if folder:
        facts.insert(1, ("folder of the images", on_one_line(folder, 300)))
    if names:
        shown = ", ".join(on_one_line(name, 40) for name in names[:40])
        facts.append(("classes", shown + (f" and {len(names) - 40} more" if len(names) > 40 else "")))
    return facts


def timing_facts(run: Run) -> list[tuple[str, str]]:
    """How long it took, and on what; nothing for a run that did not keep it."""
    timing = run.timing
    if not timing:
        return []
    training = timing["seconds"] - timing["evaluation_seconds"]
    return [
        ("training", duration(training)),
        ("evaluations", duration(timing["evaluation_seconds"])),
        ("θ steps a second", f"{timing.get('steps', 0) / max(training, 1e-9):.3g}, Λ steps included"),
        ("device", f"{timing.get('device')}, {timing.get('processes')} x {timing.get('precision')}"),
        ("versions", f"ssl-weighting {timing.get('ssl_weighting')}, torch {timing.get('torch')}"),
    ]


def configuration(run: Run) -> str:
    """The configuration without loggers, which is where keys would be, and without anything that looks like one."""
    config = without_secrets(run.config)
    trainer = {
        k: v
        for k, v in config["trainer"].items()
        if k not in ("logger", "plugins", "callbacks") and v is not None
    }
    shown = {k: config.get(k) for k in ("seed_everything", "data", "model")} | {"trainer": trainer}
    return str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100))
