"""``fit --help``: every option, on some pages."""

import dataclasses

import pytest
from modules import GROUPS

from ssl_weighting.app.cli import main
from ssl_weighting.app.trainer_options import OPTIONS


@pytest.fixture
def page(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_help_fits_on_some_pages(page):
    lines = page.splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines)) <= 120


def test_every_option_is_there(page):
    from ssl_weighting.app.choices import PLUGINS, arguments, classes
    from ssl_weighting.data import SSLData
    from ssl_weighting.module import SSLModule

    for key in (
        *(f"model.{name}" for name in arguments(SSLModule) if name not in GROUPS),
        *(f"model.{group}.{field.name}" for group in GROUPS for field in dataclasses.fields(GROUPS[group])),
        *(f"data.{n}" for n in arguments(SSLData)),
    ):
        assert f"--{key} " in page, key
    for key in ("config", "runs", "seed_everything", "ckpt_path", "checkpoint.every_minutes", *PLUGINS):
        assert f"--{key} " in page, key
    for name, option in OPTIONS.items():
        assert (f"--trainer.{name} " if option.value else name) in page, name
    for name in classes(PLUGINS["model.algorithm"]):
        assert name in page


def test_no_words_of_python(page):
    for word in (
        "type:",
        "typing",
        "NoneType",
        "Union",
        "class_path",
        ":class:",
        ":func:",
        "``",
        "Optional[",
    ):
        assert word not in page, word


def test_augmentations_are_our_own(page):
    line = " ".join(page.split()).partition("--model.labeled_augmentation ")[2].partition("--model.")[0]
    assert "CTAugment, Cutout, RandAugment, RandomFlipCrop. Options" in line


def test_an_augmentation_by_its_dotted_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = "torch.nn.Identity"
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digits_uda", f"--model.labeled_augmentation=[{path}]", "--print_config"])
    assert path.rpartition(".")[2] in capsys.readouterr().out


def test_help_of_one_class(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.labeled_augmentation.help=Cutout"])
    assert "--model.labeled_augmentation.size" in capsys.readouterr().out
