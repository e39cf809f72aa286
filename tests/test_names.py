"""What was meant: commands, recipes, and YAML that says something else than it seems to."""

import pytest

from ssl_weighting.app.cli import COMMANDS, main
from ssl_weighting.app.names import nearest
from ssl_weighting.app.recipes import find_recipe


def said(capsys, *arguments):
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fti", "fit"),
        ("FIT", "fit"),
        ("prdict", "predict"),
        ("weigths", "weights"),
        ("complete", "completion"),
    ],
)
def test_a_misspelled_command(typed, meant, capsys):
    assert f"did you mean {meant}?" in said(capsys, typed)


def test_a_word_like_no_command_is_answered_with_all(capsys):
    line = said(capsys, "train")
    assert all(name in line for name in COMMANDS)


def test_an_option_before_the_command(capsys):
    assert "a command comes first" in said(capsys, "--config", "digits_uda")


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {name for name in COMMANDS if any(line.startswith(f"  {name} ") for line in lines)} == set(
        COMMANDS
    )
    assert all(len(line) <= 120 for line in lines)


def test_nearest():
    names = ["FixMatch", "UDA", "WandbLogger", "CSVLogger", "imdb_uda"]
    assert [nearest(typed, names) for typed in ("fixmatch", "uda", "wandb", "FlxMach", "zebra", "")] == [
        "FixMatch",
        "UDA",
        "WandbLogger",
        "FixMatch",
        None,
        None,
    ]


FAULTS = {
    "a tab": ("trainer:\n\tmax_steps: 3\n", "line 2 begins with a tab"),
    "a key twice": ("trainer: {}\nmodel: {}\ntrainer: {}\n", "trainer stands twice, in lines 1 and 3"),
    "a key twice, deep": ("m:\n  a:\n    b: 1\n    b: 2\n", r"m.a.b stands twice, in lines 3 and 4"),
    "a list": ("- a\n- b\n", "not a recipe"),
    "a text": ("trainer\n", "not a recipe"),
    "nothing": ("", "empty"),
    "an open bracket": ("a: [1,\nb: 2\n", "line 3, column 1: "),
    "a control character": ("a: \x07\n", "character that no YAML"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_yaml_that_says_something_else(case, tmp_path, capsys):
    text, expected = FAULTS[case]
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    line = said(capsys, "fit", "--config", str(path))
    assert f"--config {path}: " in line
    assert expected in line


def test_a_recipe_in_another_encoding(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_bytes("# Bäume\n".encode("latin-1"))
    assert "save it as UTF-8" in said(capsys, "fit", "--config", str(path))


def test_a_folder_is_no_recipe(tmp_path, capsys):
    assert "give a recipe's name or path" in said(capsys, "fit", "--config", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in said(capsys, "fit", "--config", str(tmp_path))
    assert "no recipe's name" in said(capsys, "fit", "--config")


def test_a_recipe_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert find_recipe("~/mine.yaml") == tmp_path / "mine.yaml"


def test_a_terminal_that_cannot_show_everything(monkeypatch):
    import os
    import subprocess
    import sys

    for encoding in ("latin-1", "ascii"):
        done = subprocess.run(
            [sys.executable, "-m", "ssl_weighting", "--help"],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0
        assert b"model.weighting.lr" in done.stdout
        assert done.stderr == b""
