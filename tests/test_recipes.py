"""Every recipe in the folder parses and trains two steps, on small data in the sets' own formats; recipes on others."""

import pytest
import torch
import yaml
from command import words

from ssl_weighting.app.cli import main
from ssl_weighting.app.recipes import find_recipe, read_recipe, recipe_names

SMALL = {
    "trainer.max_steps": 2,
    "trainer.accelerator": "cpu",
    "model.weighting.inner_steps": 1,
    "model.weighting.warmup_steps": 0,
    "model.weighting.update_masked": "true",
    "data.labeled_batch_size": 4,
    "data.unlabeled_batch_size": 8,
    "data.validation_batch_size": 8,
}
IMAGES = {
    "data.num_labeled": 20,
    "data.num_validation": 20,
    "data.download": "false",
    "data.verify_checksum": "false",
    "model.backbone.depth": 10,
    "model.backbone.width": 1,
}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains(name, tmp_path, image_sets, request):
    options = SMALL
    if name.startswith("digits"):  # the labelled batch judges: four of ten classes know nothing of each other
        options = SMALL | {"data.labeled_batch_size": 40}
    if name.startswith("imdb"):
        bert, reviews = request.getfixturevalue("tiny_bert"), request.getfixturevalue("tiny_imdb")
        options = SMALL | {
            "data.root": reviews,
            "data.labeled": "random",
            "data.cache": tmp_path / "cache",
            "model.backbone.name": bert,
            "model.backbone.layers": "null",
            "model.backbone.frozen_layers": 0,
        }
    if name.startswith(("cifar10", "svhn")):
        options = SMALL | IMAGES | {"data.root": image_sets}
    if name == "cifar10_frozen":  # its encoder comes from the hub
        options = SMALL | {
            "data.root": image_sets,
            "data.download": "false",
            "data.verify_checksum": "false",
            "data.num_labeled": 20,
            "data.unlabeled_batch_size": 64,
            "model.backbone.name": "test_vit",
            "model.backbone.pretrained": "false",
            "model.backbone.arguments": "{img_size: 32}",
            "model.features.resize": 32,
            "model.features.cache": tmp_path / "cache",
        }
    assert main(["fit", *words({"config": name, "runs": tmp_path} | options)]) == 0
    (checkpoint,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    tensors = [v for k, v in state["state_dict"].items() if isinstance(v, torch.Tensor) and "stats" not in k]
    assert all(bool(v.isfinite().all()) for v in tensors if v.is_floating_point())
    moved = state["state_dict"]["weighting.stats.updates"] > 0
    assert bool(moved.any()) == ("supervised" not in name)


def test_a_recipe_says_what_it_has_otherwise_than_its_base():
    base, own = (read_recipe(find_recipe(name)) for name in ("cifar10_mean_teacher", "svhn_mean_teacher"))
    assert "base" not in own
    assert (own["data"]["class_path"], own["data"]["init_args"]["num_labeled"]) == ("Svhn", 1000)
    assert own["model"]["theta"]["optimizer"]["init_args"] == {"lr": 0.002, "weight_decay": 0.02}
    assert own["model"]["backbone"] == base["model"]["backbone"]
    assert list(own) == list(base)


@pytest.mark.parametrize("typed", [["--config", "{}"], ["--config={}"]])
def test_a_run_of_a_recipe_on_a_base_beside_it_keeps_all_values(typed, tmp_path):
    (tmp_path / "first.yaml").write_text("base: digits_uda\ntrainer: {max_steps: 3}\n")
    (tmp_path / "second.yaml").write_text("base: first\ndata: {init_args: {unlabeled_batch_size: 8}}\n")
    words_typed = [word.format(tmp_path / "second.yaml") for word in typed]
    assert main(["fit", *words_typed, "--runs", str(tmp_path), "--trainer.accelerator", "cpu"]) == 0
    (kept,) = tmp_path.glob("second/*/config.yaml")
    configuration = yaml.safe_load(kept.read_text())
    assert "base" not in configuration
    assert configuration["trainer"]["max_steps"] == 3
    assert configuration["data"]["init_args"]["unlabeled_batch_size"] == 8
    assert configuration["model"]["algorithm"]["class_path"].endswith("UDA")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "base: digits_udda\n"}, "base=digits_udda in {}/a.yaml: no such file or recipe; did you mean digits_uda?"),
        ({"a": "base: [1]\n"}, "base=[1] in {}/a.yaml: must be the name or path of a recipe, or be left out"),
        ({"a": "base: a\n"}, "base=a in {}/a.yaml: leads back to {}/a.yaml; name another recipe, or leave base out"),
        ({"a": "base: b\n", "b": "base: a.yaml\n"}, "base=a.yaml in {}/b.yaml: leads back to {}/a.yaml; name another"),
        ({"a": "base: b\n", "b": "trainer: {}\ntrainer: {}\n"}, "--config {}/b.yaml: trainer stands twice"),
        ({"a": "base: digits_uda\ndata: {init_args: {nun_labeled: 3}}\n"}, "data.nun_labeled: Digits has no such option"),
    ],
)  # fmt: skip
def test_a_slip_in_what_a_recipe_is_based_on(files, expected, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected.replace("{}", str(tmp_path)) in line
