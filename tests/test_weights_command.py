"""ssl-weighting weights: lists, exports and cleaned pools."""

import csv
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ssl_weighting.app import weights
from ssl_weighting.app.cli import main
from ssl_weighting.app.runs import Run


def test_it_lists_the_extremes(tiny_run, capsys):
    assert main(["weights", str(tiny_run), "--top", "3"]) == 0
    said = capsys.readouterr().out
    weights = Run(tiny_run).weights["weight"].to_numpy()
    assert "most harmful" in said
    assert f"{weights.min():.3f}" in said
    assert f"{weights.max():.3f}" in said
    assert said.count("row ") == 6


def test_export_of_everything(tiny_run, tmp_path):
    assert main(["weights", str(tiny_run), "--top", "0", "--export", str(tmp_path / "a.parquet")]) == 0
    assert main(["weights", str(tiny_run), "--top", "0", "--export", str(tmp_path / "a.csv")]) == 0
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    run = Run(tiny_run)
    assert table["index"] == run.weights["index"].to_pylist()
    assert table["weight"] == run.weights["weight"].to_pylist()
    assert table["example"][5] == f"row {table['index'][5]}"
    assert table["label"] == [str(label) for label in run.weights["label"].to_pylist()]
    assert [g is None for g in table["pseudo_label"]] == [
        g is None for g in run.weights["pseudo_label"].to_pylist()
    ]
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == table["index"]


def test_a_cleaned_pool_keeps_what_is_at_or_above_the_threshold(tiny_run, tmp_path, capsys):
    weights = Run(tiny_run).weights["weight"].to_pylist()
    threshold = sorted(weights)[10]
    clean = ["weights", str(tiny_run), "--top", "0", "--clean"]
    assert main([*clean, str(tmp_path / "kept.parquet"), "--threshold", str(threshold)]) == 0
    kept = pq.read_table(tmp_path / "kept.parquet").to_pydict()
    validating = Run(tiny_run).split.validation.tolist()
    assert kept["weight"] == [w for w in weights if w >= threshold] + [None] * len(validating)
    assert kept["index"][-len(validating) :] == validating
    assert None not in kept["label"][-len(validating) :]
    assert 0 < len(kept["weight"]) - len(validating) < len(weights)
    assert main([*clean, str(tmp_path / "default.csv")]) == 0
    assert "weight ≥ 0.5 (half the initial weight 1)" in capsys.readouterr().out


def test_weights_that_began_at_0_are_kept_from_a_half_on(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("    init: 1.0", "    init: 0.0"))
    assert main(["weights", str(run), "--top", "0", "--clean", str(tmp_path / "kept.csv")]) == 0
    assert "weight ≥ 0.5 (weights began at 0)" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--export", "--clean"])
def test_nothing_is_overwritten(tiny_run, tmp_path, capsys, option):
    there = tmp_path / "there.csv"
    there.write_text("mine")
    assert main(["weights", str(tiny_run), option, str(there)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert there.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--export", "a.xlsx"], "end it in .csv or .parquet"),
        (["--export", "no/such/folder/a.csv"], "is no folder"),
        (["--top", "-1"], "--top=-1"),
        (["--threshold", "1"], "give --clean FILE too"),
    ],
)
def test_bad_input(tiny_run, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["weights", str(tiny_run), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_hostile_texts_are_no_markup(tiny_run, capsys, monkeypatch):
    monkeypatch.setattr(
        weights, "descriptions", lambda data, positions: ["[red]x[/blue]\x1b[2Jy"] * len(positions)
    )
    assert main(["weights", str(tiny_run), "--top", "1"]) == 0
    said = capsys.readouterr().out
    assert "[red]x[/blue]" in said
    assert "\x1b[2J" not in said


def cleaned(run, tmp_path, capsys, **columns):
    """What --clean says of the run with columns of its weights replaced."""
    copy = shutil.copytree(run, tmp_path / "run")
    table = Run(copy).weights
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, copy / "weights.parquet")
    assert main(["weights", str(copy), "--top", "0", "--clean", str(tmp_path / "kept.csv")]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_it_says_when_nothing_was_found_and_why(tiny_run, tmp_path, capsys):
    count = len(Run(tiny_run).weights)
    weight = np.ones(count, np.float32)
    weight[:5] = [0.9, 0.95, 1.1, 1.2, 1.25]
    said = cleaned(tiny_run, tmp_path, capsys, weight=weight, updates=(weight != 1).astype(np.int32))
    assert said.startswith(
        f"nothing was found to leave out: λ lies from 0.9 to 1.25; Λ steps moved 5 of {count}, the other {count - 5} "
        "have their initial weight 1 and are kept; "
    )


def test_it_says_when_nothing_is_worth_keeping(tiny_run, tmp_path, capsys):
    count = len(Run(tiny_run).weights)
    columns = {"weight": np.full(count, 0.1, np.float32), "updates": np.ones(count, np.int32)}
    said = cleaned(tiny_run, tmp_path, capsys, **columns)
    assert said.startswith(
        f"nothing was found to keep: λ lies from 0.1 to 0.1; Λ steps moved {count} of {count}; "
    )


def test_without_a_list_it_says_the_facts(tiny_run, capsys):
    assert main(["weights", str(tiny_run), "--top", "0"]) == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("λ lies from ") and "; Λ steps moved " in said


@pytest.mark.parametrize(
    ("changes", "stepped", "expected"),
    [
        ({"kind": "fixed"}, False, "kind=fixed; a run with --model.weighting.kind per_example"),
        ({"warmup_steps": 20}, False, "no Λ step was made in 9 steps: model.weighting.warmup_steps=20 and "),
        ({}, False, "model.algorithm=UDA looks at no unlabelled example"),
        ({}, True, "masked out; a run with --model.weighting.update_masked true"),
    ],
)
def test_it_says_why_no_weight_moved(tiny_run, tmp_path, capsys, changes, stepped, expected):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    weights = Run(copy).weights
    still = pa.array(np.zeros(len(weights), np.int32))
    pq.write_table(weights.set_column(2, "updates", still), copy / "weights.parquet")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["weighting"] |= changes
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    if not stepped:
        metrics = (copy / "metrics.csv").read_text()
        (copy / "metrics.csv").write_text(metrics.replace("influence/mean", "other"))
    for top in ("0", "3"):
        assert main(["weights", str(copy), "--top", top]) == 0
        (said,) = capsys.readouterr().out.splitlines()
        assert said.startswith("No weight moved: ") and expected in said
