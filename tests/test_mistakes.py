"""What is typed wrongly is answered in one line: the option, the value, and what to type instead."""

import pytest

from ssl_weighting.app.cli import main

JARGON = (
    "typing.",
    "NoneType",
    "class_path",
    "init_args",
    "Union",
    "import path",
    "<class",
    "NestedArg",
    "{'",
)

ANSWERS = {
    # The issue's own.
    "digits_uda": "did you mean --config digits_uda?",
    "--max_steps 40": "did you mean trainer.max_steps?",
    "--model.weighting.kind fixd": "must be per_example, evidence, single or fixed; did you mean fixed?",
    "--model.algorithm fixmatch": "did you mean FixMatch?",
    "--trainer.logger wandb": "did you mean WandbLogger?",
    "--model.backbone TimmModel --model.backbone.weights x": "it has name, pretrained",
    # Names of options.
    "--lr 0.1": "did you mean model.theta.optimizer.lr",
    "--learning_rate 0.1": "did you mean model.theta.optimizer.lr?",
    "--optimizer.lr 0.1": "did you mean model.theta.optimizer.lr?",
    "--steps 40": "did you mean trainer.max_steps",
    "--seed 3": "did you mean seed_everything",
    "--output_dir here": "did you mean runs?",
    "--gpus 1": "did you mean trainer.devices?",
    "--algorithm UDA": "did you mean model.algorithm?",
    "--data.num_labelled 3": "did you mean data.num_labeled?",
    "--data.Digits.num_labeled 3": "data.Digits.num_labeled: Digits has no such option",
    "--data.root here": "Cifar10",
    "--trainr.max_steps 3": "did you mean trainer.max_steps?",
    "--whatever.x 3": "there are baseline, checkpoint",
    "-max_steps 3": "begin with two hyphens",
    "–max_steps 3": "type two hyphens, --max_steps",  # noqa: RUF001
    "--trainer.max_steps 4 0": "0: belongs to no option",
    # Values.
    "--model.weighting.inner_steps lots": "model.weighting.inner_steps=lots: must be a whole number",
    "--model.weighting.inner_steps": "model.weighting.inner_steps: no value follows",
    "--model.compile maybe": "must be true or false",
    "--model.theta.clip_norm big": "must be a number or null",
    "--model.weighting.bounds [1,2,3]": "must be 2 values such as [0.5, 2.0]",
    "--data.known_classes [a,b]": "must be a list such as [0, 1] or null",
    "--trainer.deterministic maybe": "must be warn, true or false or null",
    "--trainer.plugins x": "a cluster's environment",
    "--trainer wandb": "trainer has options of its own",
    # Names of classes.
    "--model.backbone wideresnet": "did you mean WideResNet?",
    "--data cifar": "did you mean Cifar10?",
    "--data ./photos": "no such name; there are ",
    "--model.influence exact": "did you mean ExactLastLayer?",
    "--model.algorithm null": "must be one of ",
    "--model.backbone nobodys_module.Net": "there is no module nobodys_module",
    "--model.backbone torch.nn.Linear": "not a class that fits here",
    "--model.theta.optimizer torch.optim.Adm": "torch.optim has no Adm; did you mean Adam?",
    "--model.theta.optimizer.lr 0.1": "Give --model.theta.optimizer NAME before it",
    "--model.labeled_augmentation [Cutot]": "did you mean Cutout?",
    "--model.labeled_augmentation Cutout": "must be a list, [Cutout]",
    "--model.algorithm.strong.size 3": "Give --model.algorithm.strong NAME before it",
    "--model.algorithm.strong RandAugmnt": "model.algorithm.strong=RandAugmnt: no such name; did you mean RandAugment?",
    "--trainer.logger [WandbLogger,Foo]": "no such name; there are ",
    "--trainer.logger CSVLogger": "every run writes metrics.csv",
    "--trainer.callbacks EarlyStopping": "EarlyStopping needs it: --trainer.callbacks.monitor VALUE",
    "--model.algorithm.help=UDAA": "did you mean UDA?",
    "--data Corrupted": "data=Corrupted: no such name; did you mean CorruptedDigits?",
    "--model.influence ExactLastLayer --model.influence.damping papr": "model.influence.damping",
}


def said(capsys, *arguments):
    assert main(["fit", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not any(word in line for word in JARGON), line
    return line


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("typed", ANSWERS)
def test_a_slip_of_the_keyboard(typed, capsys):
    recipe = [] if typed == "digits_uda" else ["--config", "digits_uda"]
    assert ANSWERS[typed] in said(capsys, *recipe, *typed.split())


@pytest.mark.parametrize("typed", ["", "--model.backbone MLP", "--data.num_labeled 3"])
def test_no_recipe(typed, capsys):
    line = said(capsys, *typed.split())
    assert "--config: missing" in line
    assert "`ssl-weighting recipes`" in line


RECIPES = {
    "data: Digits\ntrainer: {}\n": "model.backbone: missing from the recipe; there are ",
    "data: {class_path: Digits, init_args: {num_validaton: 20}}\n": "did you mean data.num_validation?",
    "data: Digits\nmodel: {algorithm: {class_path: UDAA}, backbone: MLP}\n": "model.algorithm=UDAA: no such name",
    "data: Digits\nmodel: {algorithm: UDA, backbone: MLP, inner_steps: 4}\n": "it is model.weighting.inner_steps now",
    "data: Digits\nmodel: {algorithm: UDA, backbone: MLP, weighting: fixed}\n": "=fixed: it is model.weighting.kind now",
    "data: Digits\nmodel: {algorithm: UDA, backbone: MLP, optimizer: Adam}\n": "it is model.theta.optimizer now",
    "data: Digits\nmodel: {algorithm: UDA, backbone: MLP, innr_steps: 4}\n": "did you mean model.weighting.inner_steps?",
    "data: Digits\nmodel: {algorithm: UDA, backbone: MLP, weighting: {inner_steps: lots}}\n": "must be a whole number",
}


def test_another_ending(tmp_path, capsys):
    (tmp_path / "pics.yaml").write_text("data: Digits")
    assert "no such file; did you mean pics.yaml?" in said(capsys, "--config", "pics.yml")


@pytest.mark.parametrize("text", RECIPES)
def test_a_slip_in_a_recipe(text, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert RECIPES[text] in said(capsys, "--config", str(path))
