"""``ssl-weighting demo``: every row has the same labels, and what is printed is what the runs said."""

import contextlib
import json
from concurrent.futures import Future
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ssl_weighting.app import demo
from ssl_weighting.app.demo import LEARNED, METHODS, Found, Outcome
from ssl_weighting.errors import UserError

SHORT = [
    *("--trainer.max_steps", "8", "--trainer.val_check_interval", "8", "--trainer.accelerator", "cpu"),
    *("--model.weighting.inner_steps", "1", "--model.weighting.warmup_steps", "0"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of each method, with one seed."""
    runs = tmp_path_factory.mktemp("runs")
    return {name: demo.train([*options, *SHORT], 0, runs) for name, options in METHODS.items()}


def test_every_row_trains_on_the_same_labels_and_keeps_none_aside(trained):
    splits = [json.loads((Path(o.directory) / "split.json").read_text()) for o in trained.values()]
    assert [len(split["labeled"]) for split in splits] == [20] * len(METHODS)
    assert len({str(split["labeled"]) for split in splits}) == 1
    assert all(split["validation"] == [] for split in splits)


def test_only_learned_weights_say_something_of_the_pool(trained):
    assert {name for name, outcome in trained.items() if outcome.found is not None} == {LEARNED}
    directory = Path(trained[LEARNED].directory)
    assert (directory / "weights.png").is_file()
    given = set(json.loads((directory / "split.json").read_text())["labeled"])
    rows = pq.read_table(directory / "weights.parquet").to_pylist()
    foreign = [row for row in rows if row["label"] >= 5]
    own = [
        row
        for row in rows
        if row["label"] < 5 and row["index"] not in given and row["pseudo_label"] is not None
    ]
    least = sorted(rows, key=lambda row: row["weight"])[: demo.LEAST]
    found = trained[LEARNED].found
    assert found.foreign_below == pytest.approx(sum(row["weight"] < 1 for row in foreign) / len(foreign))
    assert found.own_below == pytest.approx(sum(row["weight"] < 1 for row in own) / len(own))
    assert found.foreign_among_least == sum(row["label"] >= 5 for row in least)


def test_the_table_is_of_seeds_that_chose_nothing(monkeypatch, capsys):
    errors = dict(zip(METHODS, (0.09, 0.05, 0.03), strict=True))

    @contextlib.contextmanager
    def at_once(jobs, processes, option):
        ended = []
        for method, seed in jobs:
            found = Found(0.8, 0.06, 97) if method == LEARNED else None
            result = Future()
            result.set_result(Outcome(errors[method] + (seed - 21) / 100, f"runs/{seed}", found))
            ended.append(((method, seed), result))
        yield iter(ended)

    monkeypatch.setattr(demo, "side_by_side", at_once)
    assert demo.main(["--processes", "1"]) == 0
    said = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    assert [line.split("│")[-2].strip() for line in map(lines.get, METHODS)] == [
        "9.00 ± 1.00",
        "5.00 ± 1.00",
        "3.00 ± 1.00",
    ]
    assert "-6.00 against labels only, -2.00 against UDA, λ = 1" in said
    assert "80%" in lines["foreign images with a weight below 1"] and "97" in said
    assert "seed 20" in said and "seed 0" not in said and "runs/20/weights.png" in said


def test_no_seed_is_refused():
    with pytest.raises(UserError, match="--seeds 0: must be at least 1"):
        demo.main(["--seeds", "0"])
