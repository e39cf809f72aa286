"""The benchmarks run, and what they write is what they promise."""

import json

import pytest
import torch

from lab import speed
from lab.speed import influence, per_example_gradient
from lab.speed.timing import Options, medians, parse, peaks
from ssl_weighting.errors import UserError

TINY = Options("wrn-10-1", 4, 6, 4, rounds=1, float64_examples=3, memory=False)
KEYS = {"name", "scope", "seconds", "ratio", "peak_bytes", "max_relative_error"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("benchmark", [influence, per_example_gradient])
def test_rows_and_json(benchmark, tmp_path, capsys, monkeypatch):
    rows = [("exact", "last_layer"), ("neumann (20 terms)", "last_block"), ("identity", "all")]
    monkeypatch.setattr(influence, "ROWS", rows)
    file = tmp_path / "result.json"
    rows = benchmark.run(Options(**{**vars(TINY), "json": str(file)}))
    result = json.loads(file.read_text())
    assert {"machine", "reference_seconds", "rows"} <= result.keys()
    assert len(result["rows"]) == len(rows)
    assert all(set(row) == KEYS and row["seconds"] > 0 for row in result["rows"])
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["seconds"] / result["reference_seconds"])
    errors = {(r.name, r.scope): r.max_relative_error for r in rows}
    if benchmark is influence:
        assert errors["exact", "last_layer"] < 1e-2
        assert errors["identity", "all"] < 1e-3
    else:
        assert all(errors[engine, "all"] < 1e-4 for engine in per_example_gradient.ENGINES)
    assert rows[0].name in capsys.readouterr().out


def test_peers_agree_with_serial(monkeypatch):
    pytest.importorskip("backpack")
    errors = per_example_gradient._errors(TINY)
    assert errors["backpack | all"] < 1e-4


def test_the_median_is_taken_over_rounds_and_the_long_are_timed_once():
    counts = {"short": 0, "long": 0}

    def call(name):
        counts[name] += 1
        if name == "long":
            torch.randn(300, 300).pow(2).sum()

    options = Options(rounds=3, patience=1e9)
    medians({"short": lambda: call("short")}, options)
    medians({"long": lambda: call("long")}, Options(rounds=3, patience=0.0))
    assert counts == {"short": 4, "long": 1}


def _memory_calls(options):
    return {
        "little": lambda: lambda: torch.ones(1000).sum(),
        "much": lambda: lambda: torch.ones(options.unlabeled * 2**20 // 4).sum(),
    }


def test_memory_is_that_of_the_call():
    found = peaks(_memory_calls, ["little", "much"], Options(unlabeled=200, device="cpu"))
    assert found["little"] < 50 * 2**20
    assert 190 * 2**20 < found["much"] < 260 * 2**20


def test_command_line(capsys):
    assert speed.main([]) == 2
    assert speed.main(["--help"]) == 0
    assert "per-example-gradient" in capsys.readouterr().out
    options = parse("bench", "", ["--quick", "--rounds", "2", "--device", "cpu"])
    assert (options.network, options.rounds, options.device) == ("wrn-10-1", 2, "cpu")
    assert parse("bench", "", ["--network", "bert-tiny"]).unlabeled == 32
    with pytest.raises(UserError, match="--rounds=0"):
        parse("bench", "", ["--rounds", "0"])
