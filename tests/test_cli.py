"""The command: recipes by name, run folders, and bad input in one line."""

import csv
import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ssl_weighting.app import cli, recipes
from ssl_weighting.app.cli import main
from ssl_weighting.app.recipes import read_recipe, recipe_folder, recipe_names

TINY = [
    *("--trainer.max_steps", "9", "--trainer.val_check_interval", "5", "--trainer.accelerator", "cpu"),
    *(
        "--model.weighting.inner_steps",
        "2",
        "--model.weighting.warmup_steps",
        "1",
        "--data.unlabeled_batch_size",
        "16",
    ),
    *(
        "--model.weighting.update_masked",
        "true",
        "--data.validation_batch_size",
        "20",
        "--trainer.log_every_n_steps",
        "3",
    ),
]


def fit(tmp_path, *more, recipe="digits_uda"):
    return main(["fit", "--config", recipe, "--runs", str(tmp_path), *TINY, *more])


def runs(tmp_path, recipe="digits_uda"):
    return sorted((tmp_path / recipe).iterdir()) if (tmp_path / recipe).is_dir() else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one short run, which kept labels aside."""
    folder = tmp_path_factory.mktemp("runs")
    assert fit(folder, "--data.num_validation", "20") == 0
    (run,) = runs(folder)
    return run


def test_a_run_leaves_what_the_architecture_says(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml",
        "split.json",
        "metrics.csv",
        "checkpoints",
        "weights.parquet",
        "weights.png",
        "weights_history.csv",
        "timing.json",
        "report.html",
    }
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert {row["step"] for row in rows if row["train/loss"]} == {"3", "6", "9"}
    assert {row["step"] for row in rows if row["influence/mean"]} == {"3", "5", "7", "9"}
    assert [row["step"] for row in rows if row["validation/error"]] == ["5", "9"]
    assert 0 <= float(rows[-1]["test/error"]) <= 1


def test_weights_table(finished):
    table = pq.read_table(finished / "weights.parquet").to_pydict()
    split = json.loads((finished / "split.json").read_text())
    assert list(table) == ["index", "weight", "updates", "influence", "pseudo_label", "confidence", "label"]
    assert table["index"] == split["unlabeled"]
    for weight, updates, influence in zip(table["weight"], table["updates"], table["influence"], strict=True):
        assert (influence is None) == (updates == 0)
        assert weight == 1 or updates > 0
    assert sum(u > 0 for u in table["updates"]) > 10
    assert set(table["label"]) == set(range(10))


def test_the_saved_configuration_starts_the_same_run_again(finished, tmp_path):
    assert main(["fit", "--config", str(finished / "config.yaml"), "--runs", str(tmp_path)]) == 0
    (again,) = runs(tmp_path)
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (finished, again)
    )
    assert torch.equal(first["weighting.weights.values"], second["weighting.weights.values"])


def test_test_and_predict_need_the_checkpoint_alone(finished, capsys, monkeypatch, tmp_path):
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    assert main(["test", checkpoint]) == 0
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert f"{100 * float(rows[-1]['test/error']):.2f} %" in capsys.readouterr().out
    assert main(["validate", checkpoint]) == 0
    assert main(["predict", checkpoint]) == 0
    table = pq.read_table(finished / "predictions-test.parquet").to_pydict()
    assert len(table["index"]) == 500
    assert table["class"][0] in {str(c) for c in range(10)}
    assert sum(table[f"probability_{c}"][0] for c in range(10)) == pytest.approx(1, abs=1e-5)


def test_resume_goes_on_in_the_same_folder(tmp_path):
    assert fit(tmp_path, "--trainer.max_steps", "6", "--model.theta.schedule", "constant") == 0
    (run,) = runs(tmp_path)
    assert fit(tmp_path, "--ckpt_path", "last", "--model.theta.schedule", "constant") == 0
    assert runs(tmp_path) == [run]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    steps = [int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open())]
    assert steps == sorted(steps)


def test_flags_win_over_the_checkpoint(tmp_path):
    assert fit(tmp_path) == 0
    (run,) = runs(tmp_path)
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"][
        "weighting.weights.values"
    ]
    assert (
        fit(tmp_path, "--ckpt_path", "last", "--trainer.max_steps", "11", "--model.weighting.lr", "1e-9") == 0
    )
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 11
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["weighting"]["lr"] == 1e-9
    moved = state["state_dict"]["weighting.weights.values"] - before
    assert moved.abs().max() < 1e-6, "Λ moved by the checkpoint's rate"


def damaged_split(tmp_path):
    (tmp_path / "split.json").write_text("{")
    return str(tmp_path / "split.json")


BAD = {
    "a recipe that does not exist": (["--config", "digits_udda"], "--config digits_udda: .*digits_uda"),
    "a misspelled key": (
        ["--model.inner_step", "3"],
        r"model\.inner_step: no such option; did you mean model\.weighting\.inner_steps",
    ),
    "a misspelled data key": (["--data.num_labelled", "3"], r"num_labelled: .*num_labeled"),
    "more labels than examples": (
        ["--data.num_labeled", "99999"],
        r"data\.num_labeled=99999: digits has only",
    ),
    "labelled and validation too many": (
        ["--data.num_labeled", "700", "--data.num_validation", "700"],
        r"num_labeled=700 and data\.num_validation=700: together more than",
    ),
    "N below 1": (
        ["--model.weighting.inner_steps", "0"],
        r"model\.weighting\.inner_steps=0: must be at least 1",
    ),
    "batch size below 1": (
        ["--data.unlabeled_batch_size", "0"],
        r"data\.unlabeled_batch_size=0: must be at least 1",
    ),
    "bounds reversed": (
        ["--model.weighting.bounds", "[2.0,0.0]"],
        r"model\.weighting\.bounds=\[2\.0, 0\.0\]",
    ),
    "a class with no label": (
        ["--data.num_labeled", "5"],
        r"data\.num_labeled=5: class .* would get no label",
    ),
    "float16": (["--trainer.precision", "16-mixed"], r"trainer\.precision=16-mixed: .*bf16-mixed"),
    "no such checkpoint": (["--ckpt_path", "nowhere.ckpt"], r"nowhere\.ckpt: no such folder or file"),
    "no run to resume": (["--ckpt_path", "last"], r"ckpt_path=last: no run of digits_uda"),
    "no such split": (["--data.split", "nowhere.json"], r"data\.split=nowhere\.json: no such file"),
    "no steps": (["--trainer.max_steps", "-1"], r"trainer\.max_steps=-1"),
    "not a number": (["--data.num_labeled", "many"], r"data.*num_labeled.*many"),
    "a class that does not exist": (["--model.algorithm", "FixMach"], r"FixMach"),
    "a value out of range in a plug-in": (
        ["--model.algorithm.threshold", "1.5"],
        r"threshold=1\.5: must lie between",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    recipe = [] if arguments[0] == "--config" else ["--config", "digits_uda"]
    assert main(["fit", *recipe, "--runs", "runs", *TINY, *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert len(said) < 400, said
    import re

    assert re.search(expected, said), said
    assert not list(Path("runs").glob("*/*")), "a run folder was left behind"


def test_missing_and_corrupt_data(tmp_path, capsys):
    where = [
        "fit",
        "--config",
        "cifar10_uda",
        "--runs",
        str(tmp_path / "runs"),
        "--data.root",
        str(tmp_path / "data"),
    ]
    assert main([*where, "--data.download", "false"]) == 2
    assert "data.root=" in capsys.readouterr().err
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(b"not a pickle")
    assert main([*where, "--data.download", "false", "--data.verify_checksum", "false"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: data.root=")
    assert "\n" not in said


def test_a_checkpoint_of_another_split_or_data_set(finished, tmp_path, capsys):
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    assert fit(tmp_path, "--ckpt_path", checkpoint, "--data.split_seed", "5") == 2
    assert "data.split_seed=5: has no effect" in capsys.readouterr().err
    assert main(["validate", checkpoint, "--data.split_seed", "5"]) == 2, "the run's own split decides"
    assert "data.split_seed=5: has no effect" in capsys.readouterr().err
    assert main(["validate", checkpoint, "--data.split", str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err
    assert main(["validate", checkpoint, "--data", "Synthetic"]) == 2
    assert "does not fit the checkpoint" in capsys.readouterr().err


def test_a_foreign_checkpoint(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    for name in ("other.ckpt", "broken.ckpt"):
        assert fit(tmp_path, "--ckpt_path", str(tmp_path / name)) == 2
        assert "ckpt_path" in capsys.readouterr().err


def test_tensorboard_and_wandb_by_one_line(tmp_path, monkeypatch):
    """Both write into the run's folder; W&B stays offline without a key."""
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert fit(tmp_path, "--trainer.logger", "TensorBoard") == 0
    (run,) = runs(tmp_path)
    assert list(run.glob("tensorboard/events.out.tfevents.*"))
    assert fit(tmp_path, "--trainer.logger", "WandbLogger") == 0
    second = next(r for r in runs(tmp_path) if r != run)
    assert list(second.glob("wandb/offline-run-*/*.wandb"))
    assert (second / "metrics.csv").is_file()


def test_help_is_short(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "fit --config" in said
    assert len(said.splitlines()) < 30


def test_recipes_are_listed_with_a_description(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_begins_with_what_it_is(name):
    path = recipe_folder() / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    assert read_recipe(path)["trainer"]["max_steps"] >= 1


def test_own_warnings_are_one_line_without_a_place_in_the_code(monkeypatch, capsys):
    def command(argv):
        warnings.warn_explicit(
            "2 images\ncannot be read", UserWarning, str(Path(cli.__file__).with_name("x.py")), 7
        )
        warnings.warn_explicit("strange", UserWarning, "/elsewhere/torch.py", 7)
        return 0

    monkeypatch.setattr(recipes, "main", command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["recipes"]) == 0
    own, other = capsys.readouterr().err.splitlines()[:2]
    assert own == "warning: 2 images cannot be read"
    assert "/elsewhere/torch.py:7" in other


def test_a_reader_who_leaves_is_no_fault(tmp_path):
    command = f"{sys.executable} -m ssl_weighting recipes | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_modules_of_the_working_folder_are_found_by_an_installed_command(tmp_path, monkeypatch):
    (tmp_path / "net_beside_the_recipe.py").write_text("class Net: pass\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    assert find_spec("net_beside_the_recipe") is not None


@pytest.mark.parametrize("command", [name for name, entry in cli.COMMANDS.items() if entry.takes == "run"])
def test_a_run_that_is_not_named(command, capsys):
    assert main([command]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: RUN: missing; type ssl-weighting {command} RUN")
