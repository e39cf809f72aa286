"""A resumed run does what it is told now: for every option of the module that a checkpoint could hold against it."""

import dataclasses
import inspect
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from modules import GROUPS, ssl_module
from torch import nn

from ssl_weighting import resumption
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.resume import FIXED, Resumed, refuse_changes
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.encoder import FeatureOptions
from ssl_weighting.errors import UserError
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting.weighting import fitted_moments


class Noise(nn.Module):
    def forward(self, images):
        return images + 0.3 * torch.randn_like(images)


class AtOnce(Callback):
    """Saves as soon as training begins or goes on, as the runs of the command do."""

    def __init__(self, path):
        self.path = path

    def on_train_start(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


class Counting(torch.optim.SGD):
    """Keeps a number of its own among its options, as Prodigy and D-Adaptation keep their estimates."""

    def __init__(self, groups, lr, momentum):
        super().__init__(groups, lr=lr, momentum=momentum)
        for group in self.param_groups:
            group["estimate"] = 1.0

    def step(self, closure=None):
        for group in self.param_groups:
            group["estimate"] *= 0.5
        return super().step(closure)


SGD = partial(torch.optim.SGD, lr=0.03, momentum=0.9)
OLD = {
    "num_classes": 10,
    "algorithm": lambda: UDA(threshold=0.107, strong=[Noise()]),
    "theta_optimizer": SGD,
    "weighting_inner_steps": 1,
    "weighting_lr": 0.05,
    "theta_ema_decay": 0.9,
    "theta_schedule": "constant",
}
NEW = {
    "algorithm": lambda: FixMatch(threshold=0.05, strong=[Noise()]),
    "influence": lambda: Identity(scope="last_layer"),
    "weighting_kind": "fixed",
    "weighting_inner_steps": 2,
    "weighting_warmup_steps": 100,
    "weighting_lr": 0.5,
    "weighting_optimizer": "sgd",
    "weighting_bias_correction": "per_example",
    "weighting_bounds": (0.99, 1.01),
    "weighting_batchnorm": "train",
    "theta_optimizer": partial(torch.optim.SGD, lr=0.3, momentum=0.9),
    "theta_schedule": "linear",
    "theta_lr_warmup_steps": 100,
    "theta_clip_norm": 1e-3,
    "theta_ema_decay": 0.5,
    "labeled_augmentation": lambda: [Noise()],
    "target_pass": "apart",
}
"""Another value of each option that changes the steps to come."""
SAME_NUMBERS = {"nonfinite", "channels_last", "compile", "weighting_weights"} | {
    f"features_{field.name}" for field in dataclasses.fields(FeatureOptions)
}
"""How a step is computed, what is done about a bad one, what a run begins with, what frozen backbones alone look at."""


def made(**changes):
    seed_everything(0, verbose=False)
    options = OLD | changes
    values = {name: value() if inspect.isfunction(value) else value for name, value in options.items()}
    values.setdefault("backbone", SmallConvNet(1, (8, 8)))
    return ssl_module(**values)


def fit(folder, steps, checkpoint=None, save_at_once=None, **changes):
    module = made(**changes)
    data = Digits(
        num_labeled=20, num_validation=20, labeled_batch_size=4, unlabeled_batch_size=16, split_seed=0,
        validation_batch_size=20,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        limit_val_batches=0, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[AtOnce(save_at_once)] if save_at_once else [],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module, trainer


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A checkpoint after four steps, and the state after two more with the same options."""
    folder = tmp_path_factory.mktemp("begun")
    _, trainer = fit(folder, 4)
    trainer.save_checkpoint(folder / "4.ckpt")
    module, _ = fit(folder, 6, folder / "4.ckpt")
    return folder / "4.ckpt", numbers(module)


def numbers(module):
    return {
        name: value.clone()
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor) and not name.startswith("algorithm.")
    }


def test_every_option_is_tried():
    options = {*inspect.signature(SSLModule.__init__).parameters} - {"self", *GROUPS}
    options |= {
        f"{group}_{field.name}" for group, kind in GROUPS.items() for field in dataclasses.fields(kind)
    }
    fixed = {key.removeprefix("model.").replace(".", "_") for key in FIXED if key.startswith("model.")}
    assert options == {*NEW} | fixed | SAME_NUMBERS | {
        "backbone",
        "theta_scope",
        "weighting_update_masked",
        "weighting_prior",
    }


def test_the_same_options_are_a_run_left_alone(begun, tmp_path):
    _, resumed = begun
    whole, _ = fit(tmp_path, 6)
    for name, value in numbers(whole).items():
        assert torch.equal(value.nan_to_num(), resumed[name].nan_to_num()), name


@pytest.mark.parametrize("option", NEW)
def test_the_new_value_is_what_the_next_step_uses(option, begun, tmp_path):
    checkpoint, same = begun
    module, _ = fit(tmp_path, 6, checkpoint, **{option: NEW[option]})
    found = numbers(module)
    differing = {
        name
        for name, value in found.items()
        if value.shape != same[name].shape or not torch.equal(value.nan_to_num(), same[name].nan_to_num())
    }
    assert differing, f"{option} of the checkpoint won"
    if option.startswith("weight") or option in (
        "bias_correction",
        "influence",
        "inner_steps",
        "warmup_steps",
    ):
        assert "weighting.weights.values" in differing


def test_masked_examples_move_from_now_on(begun, tmp_path):
    strict = {"algorithm": lambda: UDA(threshold=0.99, strong=[Noise()])}
    still, moving = (
        fit(tmp_path, 6, begun[0], weighting_update_masked=masked, **strict)[0].weighting.weights.values
        for masked in (False, True)
    )
    assert (still != moving).any()


def test_rates_and_momentum_are_the_new_ones(begun, tmp_path):
    module, _ = fit(tmp_path, 6, begun[0], theta_optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.5))
    for group in module.optimizers().param_groups:
        assert (group["lr"], group["initial_lr"], group["momentum"]) == (0.2, 0.2, 0.5)
    assert module.lr_schedulers().base_lrs == [0.2, 0.2]


def test_weights_lie_within_the_new_bounds(begun, tmp_path):
    module, _ = fit(tmp_path, 5, begun[0], weighting_bounds=(0.99, 1.01))
    assert module.weighting.weights.values.max() <= 1.01


def unrolled():
    return TruncatedUnroll(steps=3)


TWICE = {
    "the same": {},
    "rates": {"theta_optimizer": partial(torch.optim.SGD, lr=0.2, momentum=0.5)},
    "bounds": {"weighting_bounds": (0.99, 1.01)},
    "history": {"influence": unrolled, "weighting_inner_steps": 3},
}


@pytest.mark.parametrize("case", TWICE)
def test_a_checkpoint_of_the_moment_that_a_run_goes_on_is_whole(case, tmp_path):
    """A run that is killed before its next checkpoint, and gone on with again, ends as one that was not."""
    history = {"influence": unrolled, "weighting_inner_steps": 3} if case == "history" else {}
    _, trainer = fit(tmp_path, 5, **history)
    trainer.save_checkpoint(tmp_path / "5.ckpt")
    once, _ = fit(tmp_path, 7, tmp_path / "5.ckpt", save_at_once=tmp_path / "again.ckpt", **TWICE[case])
    twice, _ = fit(tmp_path, 7, tmp_path / "again.ckpt", **TWICE[case])
    assert (once.weighting.weights.values != 1).any()
    for name, value in numbers(once).items():
        assert torch.equal(value.nan_to_num(), numbers(twice)[name].nan_to_num()), name


def test_what_an_optimiser_keeps_among_its_options_is_state(tmp_path):
    _, trainer = fit(tmp_path, 4, theta_optimizer=partial(Counting, lr=0.03, momentum=0.9))
    trainer.save_checkpoint(tmp_path / "4.ckpt")
    module, _ = fit(tmp_path, 6, tmp_path / "4.ckpt", theta_optimizer=partial(Counting, lr=0.2, momentum=0.9))
    (group, *_) = module.optimizers().param_groups
    assert (group["estimate"], group["lr"]) == (2.0**-6, 0.2)


BEGUN = {"weighting_init": 2.0, "weighting_storage": "sharded", "theta_accumulate": 2, "theta_decay_all": True,
         "num_classes": 11, "symmetric_binary_head": False}  # fmt: skip


@pytest.mark.parametrize("option", BEGUN)
def test_from_python_too_what_a_run_is_begun_with_stays(option, begun, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_weighting.guards.check_classes", lambda *_: None)
    (key,) = (key for key in resumption.BEGUN if key.replace(".", "_") == option)
    with pytest.raises(UserError, match=rf"model\.{key}={BEGUN[option]}: the run was begun with "):
        fit(tmp_path, 6, begun[0], **{option: BEGUN[option]})


REFUSED = {
    "another optimiser": ({"theta_optimizer": partial(torch.optim.AdamW, lr=1e-3)}, "begun with SGD, whose moments"),
    "other heads": (
        {"algorithm": lambda: ReMixMatch(strong=[Noise()])},
        r"model\.backbone, model\.algorithm: the run trains other",
    ),
    "another scope": ({"theta_scope": "last_layer"}, "the run trains other parameters"),
    "another network": ({"backbone": lambda: SmallConvNet(1, (4, 4))}, r"model\.backbone: the checkpoint holds another"),
    "a method with state of its own": ({"algorithm": lambda: FreeMatch(strong=[Noise()])}, r"model\.algorithm: "),
    "one weight for all": ({"weighting_kind": "single"}, r"model\.weighting\.kind: "),
    "weights by evidence": ({"weighting_kind": "evidence"}, r"model\.weighting\.kind: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_state_that_does_not_fit_is_refused_by_its_option(case, begun, tmp_path):
    changes, expected = REFUSED[case]
    with pytest.raises(UserError, match=expected):
        fit(tmp_path, 6, begun[0], **changes)


@pytest.mark.parametrize("key", FIXED)
def test_what_a_run_is_begun_with_stays(key, tmp_path):
    run = Resumed(tmp_path / "last.ckpt", tmp_path, {}, 4)
    with pytest.raises(UserError, match=rf"{key}=2: the run .* was begun with 1, and goes on with it"):
        refuse_changes(run, {key: (1, 2)})


def test_moments_for_another_rule():
    two, counts = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5, 6])
    three = fitted_moments(two, 3, counts)
    assert three.tolist() == [[1, 2, 5], [3, 4, 6]]
    assert torch.equal(fitted_moments(three, 2, counts), two)
    assert fitted_moments(three, 0, counts).shape == (2, 0)
    assert fitted_moments(two[:, :0], 3, counts).tolist() == [[0, 0, 0]] * 2
