"""Names and paths as people have them: brackets, blanks, ``~``, colons, very long, other bytes."""

import os
import shutil
from pathlib import Path

import pytest
from command import words

from ssl_weighting.app.cli import main
from ssl_weighting.app.recipes import recipe_folder
from ssl_weighting.errors import UnwritableError, UserError
from ssl_weighting.files import check_utf8, home_path, whole_file

SHORT = words(
    {
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "model.weighting.warmup_steps": 0,
        "model.weighting.inner_steps": 1,
        "model.weighting.update_masked": "true",
        "data.unlabeled_batch_size": 16,
    }
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


def recipe(path):
    text = (recipe_folder() / "digits_uda.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return str(path)


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", ["flowers [v2]", "[bold]x", "a:b", "x" * 240])
def test_a_recipe_of_any_name_and_the_paths_that_are_printed(here, name, capsys):
    assert main(["fit", "--config", recipe(here / f"{name}.yaml"), *SHORT]) == 0
    printed = capsys.readouterr().out
    said = dict(
        line.split(": ", 1) for line in printed.splitlines() if line.startswith(("run folder: ", "report: "))
    )
    assert Path(said["run folder"], "weights.parquet").is_file()
    assert Path(said["report"]).is_file()


def test_runs_below_a_name_that_looks_like_an_address(here):
    assert main(["fit", "--config", "digits_uda", *SHORT, "--runs", "s3:x"]) == 0
    (run,) = here.glob("s3:x/*/*")
    assert main(["weights", str(run), "--top", "1", "--export", "s3:w.parquet"]) == 0
    assert (here / "s3:w.parquet").is_file()


def test_the_home_folder(here):
    mine = recipe(here / "home" / "mine.yaml")
    assert main(["fit", "--config=~/mine.yaml", *SHORT, "--runs=~/myruns"]) == 0
    (run,) = here.glob("home/myruns/mine/*")
    shutil.copy(run / "split.json", here / "home" / "x.json")
    assert main(["fit", "--config", mine, *SHORT, "--data.split=~/x.json", "--runs=~/again"]) == 0
    first, second = here / "home" / "x.json", next(here.glob("home/again/mine/*/split.json"))
    assert first.read_bytes() == second.read_bytes()
    assert main(["weights", f"~/myruns/mine/{run.name}", "--export=~/w.csv"]) == 0
    assert (here / "home" / "w.csv").is_file()
    assert not (here / "~").exists()


def test_a_name_that_is_no_home_folder_stays(here):
    assert home_path("~nobody here/x") == Path("~nobody here/x")


LONG = "n" * 300
TOO_LONG = {
    f"fit --config {LONG}": f"{LONG}: File name too long",
    f"fit --config digits_uda --runs {LONG}": "no folder can be made there (File name too long)",
    f"fit --config digits_uda --data.split {LONG}": f"data.split={LONG}: ",
    f"init --images {LONG}": "too long a name for a file; give a shorter one",
    f"init --text t.csv --out {LONG}.yaml": "too long a name for a file; give a shorter one",
    f"weights {LONG}": "File name too long",
    f"predict {LONG}": "File name too long",
    "fit --config digits_uda --runs file": "runs=file: no folder can be made there",
    "fit --config digits_uda --runs file/x": "runs=file/x: no folder can be made there (Not a directory)",
}


@pytest.mark.parametrize("typed", TOO_LONG, ids=lambda typed: typed.replace(LONG, "LONG"))
def test_names_that_cannot_be(here, typed, capsys):
    (here / "file").touch()
    assert main(typed.split()) == 2
    assert TOO_LONG[typed] in one_line(capsys)
    assert not list(here.glob("runs/*/*"))


def test_other_bytes_than_utf8_are_refused(here, capsys, monkeypatch):
    folder = os.fsdecode(os.fsencode(here) + b"/caf\xe9")
    os.mkdir(folder)
    for typed in (
        ["init", "--images", folder],
        ["fit", "--config", "digits_uda", "--runs", folder],
        ["fit", "--config", "digits_uda", "--data.split", folder],
    ):
        assert main(typed) == 2
        assert r"caf\udce9: holds bytes that are no UTF-8" in one_line(capsys)
    monkeypatch.chdir(folder)
    assert main(["fit", "--config", "digits_uda"]) == 2
    assert "runs=" in one_line(capsys)
    assert os.listdir(folder) == []
    with pytest.raises(UserError):
        check_utf8(folder, "key")


def test_a_file_whose_name_leaves_no_room_for_an_ending(here):
    path = here / ("ä" * 127)
    with whole_file(path) as partial:
        partial.write_text("x")
    assert os.listdir(here / "home") == []
    assert path.read_text() == "x"
    with (
        pytest.raises(UnwritableError, match="cannot be written"),
        whole_file(here / "no" / "folder") as partial,
    ):
        partial.write_text("x")
