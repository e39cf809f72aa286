"""Studies: what a file declares, what is kept, and what happens to a killed one."""

import csv
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lab.__main__ import main as lab_main
from lab.study import main, parse_seeds, read_study, run_folder, train
from ssl_weighting.errors import UserError

STUDIES = sorted((Path(__file__).resolve().parents[2] / "lab" / "studies").glob("*.yaml"))
TINY = {
    "trainer.max_steps": 6,
    "trainer.val_check_interval": 3,
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": 1,
    "model.weighting.inner_steps": 2,
    "model.weighting.warmup_steps": 1,
    "model.weighting.update_masked": True,
    "data.unlabeled_batch_size": 16,
    "checkpoint.every_steps": 6,
}
STUDY = {
    "recipe": "digits_uda",
    "fixed": TINY,
    "arms": {"fixed": {"model.weighting.kind": "fixed"}, "per_example": None},
    "factors": {"data.num_labeled": [10, 20]},
    "seeds": 1,
    "control": "fixed",
}


def write(tmp_path, **changes):
    content = {k: v for k, v in (STUDY | changes).items() if v is not ...}
    path = tmp_path / "tiny.yaml"
    path.write_text("# Does it run?\n" + yaml.safe_dump(content, sort_keys=False))
    return path


def table(out):
    with open(out / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- the file ----------------------------------------------------------------------------------------------


def test_all_combinations_in_order(tmp_path):
    study = read_study(write(tmp_path, seeds="3..4"))
    assert study.description == "Does it run?"
    assert [(c.arm, c.levels) for c in study.cells] == [
        ("fixed", {"num_labeled": "10"}),
        ("per_example", {"num_labeled": "10"}),
        ("fixed", {"num_labeled": "20"}),
        ("per_example", {"num_labeled": "20"}),
    ]
    assert study.cells[0].overrides == TINY | {"data.num_labeled": 10, "model.weighting.kind": "fixed"}
    assert study.seeds == [3, 4]


def test_levels_of_several_options_recipes_and_cells(tmp_path):
    factors = {
        "set": {"digits": {"recipe": "digits_fixmatch"}, "moons": {"recipe": "moons", "data.noise": 0.2}},
        "model.weighting.lr": [0.1, 0.2],
    }
    cells = [{"set": "moons", "arm": "fixed"}, {"lr": 0.2, "set": "digits"}]
    study = read_study(write(tmp_path, factors=factors, cells=cells))
    assert {(c.arm, c.recipe, c.overrides["model.weighting.lr"]) for c in study.cells} == {
        ("fixed", "moons", 0.1),
        ("fixed", "moons", 0.2),
        ("fixed", "digits_fixmatch", 0.2),
        ("per_example", "digits_fixmatch", 0.2),
    }
    assert all("recipe" not in c.overrides for c in study.cells)


def test_an_option_given_again_comes_later(tmp_path):
    fixed = {"model.algorithm": "UDA", "model.algorithm.threshold": 0.5}
    study = read_study(write(tmp_path, fixed=fixed, arms={"fixed": {"model.algorithm": "FixMatch"}}))
    assert list(study.cells[0].overrides) == [
        "model.algorithm.threshold",
        "data.num_labeled",
        "model.algorithm",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": {}}, "'arm'"),
        ({"recipe": ...}, "recipe is missing"),
        ({"control": "none"}, "none of the arms"),
        ({"arms": {"fixed": 3}}, "fixed: 3 must be a mapping"),
        ({"factors": {"data.num_labeled": 10}}, "must be a mapping"),
        ({"cells": [{"arm": "other"}]}, "matches its cells"),
        ({"seeds": "a..b"}, "seeds"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        read_study(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_seeds():
    assert parse_seeds(3) == [0, 1, 2]
    assert parse_seeds("2..4") == [2, 3, 4]
    assert parse_seeds("5,1") == [5, 1]
    assert parse_seeds([7]) == [7]
    for none in (0, "4..2", []):
        with pytest.raises(UserError, match="are none; 1 means seed 0 alone"):
            parse_seeds(none)


def test_identity_is_what_decides_the_figures(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {weight_lr: 0.1}\n")

    def settings(**changes):
        return read_study(write(tmp_path, **changes)).cells[0].settings()

    first = settings()
    renamed = {"plain": {"model.weighting.kind": "fixed"}}
    assert settings(arms=renamed, control="plain") == first
    assert settings(fixed=TINY | {"data.root": "/elsewhere", "data.num_workers": 2}) == first
    assert settings(fixed=TINY | {"trainer.max_steps": 7}) != first
    assert settings(recipe="digits_fixmatch") != first
    other = tmp_path / "other.yaml"
    other.write_text("# a comment more\nmodel: {weight_lr: 0.1}\n")
    assert settings(recipe=str(recipe)) == settings(recipe=str(other))
    other.with_name("third.yaml").write_text("model: {weight_lr: 0.2}\n")
    assert settings(recipe=str(tmp_path / "third.yaml")) != settings(recipe=str(recipe))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_projects_own_studies_are_whole(path):
    study = read_study(path)
    assert any(cell.arm == study.control for cell in study.cells)
    assert len({cell.settings() for cell in study.cells}) > 1
    assert len(study.description) > 20


# ---- running -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_is_run_kept_and_skipped(tmp_path, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    assert main([str(path), "--out", str(out), "--jobs", "2"]) == 0
    rows = table(out)
    assert [(r["arm"], r["factor.num_labeled"], r["seed"]) for r in rows] == [
        ("fixed", "10", "0"),
        ("per_example", "10", "0"),
        ("fixed", "20", "0"),
        ("per_example", "20", "0"),
    ]
    for row in rows:
        folder = out / row["folder"]
        with open(folder / "metrics.csv", newline="") as file:
            metrics = list(csv.DictReader(file))
        assert float(row["test_error"]) == float([m["test/error"] for m in metrics if m["test/error"]][-1])
        assert row["split"] == json.loads((folder / "split.json").read_text())["sha256"]
        assert (row["steps"], row["labeled"]) == ("6", row["factor.num_labeled"])
        assert (row["weight_std"] == "0.0") == (row["arm"] == "fixed")
        assert not list(folder.rglob("*.ckpt"))
        assert {"config.yaml", "weights.parquet", "run.json"} <= {p.name for p in folder.iterdir()}
    assert rows[0]["split"] == rows[1]["split"] != rows[2]["split"]

    before = {p: p.stat().st_mtime_ns for p in out.rglob("run.json")}
    (out / "runs.csv").unlink()
    capsys.readouterr()
    assert main([str(path), "--out", str(out)]) == 0
    assert "4 of 4 runs are there" in capsys.readouterr().out
    assert table(out) == rows
    assert {p: p.stat().st_mtime_ns for p in out.rglob("run.json")} == before


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path):
    fixed = TINY | {"trainer.max_steps": 24, "trainer.val_check_interval": 12}
    path = write(tmp_path, fixed=fixed, factors={})
    command = [sys.executable, "-m", "lab", "study", str(path), "--jobs", "1", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    second = run_folder(tmp_path / "killed", read_study(path).cells[1], 0)

    def progress():
        return "".join(p.read_text() for p in second.glob("*/*/metrics.csv"))

    while "\n14," not in progress():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = run_folder(tmp_path / "killed", read_study(path).cells[0], 0) / "run.json"
    finished = first.stat().st_mtime_ns
    _wait_for_workers_to_end(second)
    assert not (second / "run.json").exists()

    assert main([str(path), "--out", str(tmp_path / "killed"), "--jobs", "1"]) == 0
    assert first.stat().st_mtime_ns == finished  # was not made again
    assert "--ckpt_path" in json.loads((second / "run.json").read_text())["arguments"]
    assert main([str(path), "--out", str(tmp_path / "whole"), "--only", "per_example"]) == 0
    whole = tmp_path / "whole" / "runs" / second.name
    assert (whole / "metrics.csv").read_text() == (second / "metrics.csv").read_text()


def _wait_for_workers_to_end(folder):
    """A worker ends with its parent: its files stop growing at once."""

    def state():
        return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())

    time.sleep(0.5)
    before = state()
    time.sleep(1.5)
    assert state() == before


@pytest.mark.slow
def test_a_run_that_explodes_does_not_stop_the_others(tmp_path, capsys):
    arms = {
        "fixed": {"model.weighting.kind": "fixed"},
        "bad": {"model.theta.optimizer": "torch.optim.SGD", "model.theta.optimizer.lr": 1e30},
    }
    out = tmp_path / "out"
    assert main([str(write(tmp_path, arms=arms, factors={})), "--out", str(out), "--jobs", "1"]) == 1
    assert [row["arm"] for row in table(out)] == ["fixed"]
    assert "not finite" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_setting_stops_at_once(tmp_path, capsys):
    path = write(tmp_path, fixed=TINY | {"model.inner_step": 3})
    assert lab_main(["study", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    assert "did you mean model.weighting.inner_steps?" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("metrics.csv"))


def test_wrong_options(tmp_path):
    path = str(write(tmp_path))
    for options, said in (
        (["--only", "single"], "it has fixed, per_example, num_labeled=10"),
        (["--jobs", "0"], "at least 1"),
        (["--trainer.max_steps", "3"], "another study"),
        (["--trainer.max_steps"], "value"),
    ):
        with pytest.raises(UserError, match=said):
            main([path, *options])


def test_two_studies_do_not_share_a_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another study"):
            main([str(write(tmp_path)), "--out", str(out)])


def two_steps(path, tmp_path, **more):
    """One run of two steps for every arm and every level."""
    small = {
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "model.weighting.warmup_steps": 0,
    } | more
    seen = set()
    for cell in read_study(path, small).cells:
        names = {cell.arm, *cell.levels.items()}
        if not names <= seen:
            seen |= names
            train(cell, 0, tmp_path / str(len(seen)))
            assert (tmp_path / str(len(seen)) / "run.json").is_file()
    assert seen
    assert os.environ["PL_GLOBAL_SEED"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in STUDIES if "cifar10" not in p.stem], ids=lambda path: path.stem)
def test_the_projects_own_studies_run(path, tmp_path):
    two_steps(path, tmp_path)


def few_to_test(root, tmp_path):
    """CIFAR-10 with all of its training images, and the first hundred to test."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (root / folder.name).glob("data_batch_*"):
        (folder / file.name).symlink_to(file)
    batch = pickle.loads((root / folder.name / "test_batch").read_bytes(), encoding="latin1")
    few = {key: batch[key][:100] for key in ("data", "labels")}
    (folder / "test_batch").write_bytes(pickle.dumps(few, protocol=2))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in STUDIES if "cifar10" in p.stem], ids=lambda path: path.stem)
def test_the_projects_own_studies_run_on_cifar10(path, tmp_path, real_cifar10):
    quick = {"trainer.precision": "32-true", "baseline": "none"}  # bfloat16 is slow where it is emulated
    root = {"data.root": str(few_to_test(real_cifar10, tmp_path)), "data.verify_checksum": False}
    two_steps(path, tmp_path, **root, **quick)
