"""Every method, solver and option on a device other than the CPU: it starts, it trains, it is evaluated and resumed."""

import warnings
from collections import Counter

import accelerator
import pytest
import torch
from accelerator import DEVICE, OnDevice, OtherDeviceError, pretending
from discovered import METHODS, SOLVERS
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from modules import ssl_module
from torch import nn

from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app import trained
from ssl_weighting.app.cli import main
from ssl_weighting.app.run import CLI
from ssl_weighting.app.trained import TrainedModel
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.imdb import Imdb
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.module import SSLModule

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def device(monkeypatch):
    with pretending(monkeypatch) as waits:
        yield waits


def images(classes):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % classes
    inputs = (255 * torch.rand(90, 3, 8, 8, generator=draw)).to(torch.uint8)
    return TensorData(
        inputs, labels, num_labeled=12, num_validation=24, labeled_batch_size=6, unlabeled_batch_size=8,
        validation_batch_size=24, mean=(0.5,) * 3, std=(0.5,) * 3, split_seed=0,
    )  # fmt: skip


class Steps(Callback):
    """Waits for the device in θ steps that are not followed by a Λ step, the first of which set things up."""

    def __init__(self, waits):
        self.waits, self.before, self.in_theta_steps = waits, Counter(), []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = self.waits.lines.copy()

    def on_train_end(self, trainer, module):
        self.devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx and trainer.global_step % module.weighting.options.inner_steps:
            self.in_theta_steps.append(self.waits.lines - self.before)


def train(waits, folder, algorithm, influence=None, steps=4, classes=3, data=None, **options):
    torch.manual_seed(0)
    options = {
        "backbone": SmallConvNet(3, (4, 6)),
        "weighting_inner_steps": 2,
        "theta_ema_decay": 0.9,
    } | options
    checkpoint, precision = options.pop("checkpoint", None), options.pop("precision", None)
    module = ssl_module(classes, algorithm=algorithm, influence=influence, **options)
    for name, head in module.model.heads.items():
        if name == "one_vs_all":  # as drawn it takes examples for strangers, which move no weight
            head.bias.data[1::2] = 2.0
    counted = Steps(waits)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, strategy=accelerator.strategy(), callbacks=[counted],
        val_check_interval=min(4, steps), check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=1000,
        default_root_dir=folder, plugins=precision,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data or images(classes), ckpt_path=checkpoint)
    assert counted.devices == {DEVICE}
    assert 0 <= module.latest["validation/error"] <= 1
    return module, trainer, counted.in_theta_steps


def sure(method):
    """A method that takes examples whatever the network makes of them."""
    names = [n for n in ("threshold",) if n in method.__init__.__code__.co_varnames]
    return method(**dict.fromkeys(names, 0.3))


# CTAugment draws its operations on the device: those of 8 strong views, one more and a probe are counted.
# Ensemble looks at the pool four times a run, so at each of these four steps: examples, targets and labelled rows go to
# the device, features and predictions come back.
MOST_WAITS = {"ReMixMatch": 10, "Ensemble": 5}
"""Waits in a θ step by method; 0 where none is named."""

WAITS_OF_TEXTS = 8
"""Of each of three views how many words and how many pieces, and twice how long the texts are that run together."""


@pytest.mark.parametrize("influence", [ExactLastLayer, RelativeInfluence, Larsen], ids=lambda i: i.__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_method(method, influence, device, tmp_path):
    if method.__name__ == "MixMatch" and influence is RelativeInfluence:
        pytest.skip("refused: its terms hold no guess")
    options = (
        {"scope": "all"} if influence is Larsen else {"damping": 10.0} if influence is ExactLastLayer else {}
    )
    steps = 4 if influence is ExactLastLayer else 2
    module, _, waited = train(device, tmp_path, sure(method), influence(**options), steps=steps)
    if module.weighting.learns:
        assert module.weighting.stats.updates.sum() > 0, "no weight was moved"
    most = max(
        waited, key=Counter.total, default=Counter()
    )  # of two steps the first sets up, the other is Λ's
    assert most.total() <= MOST_WAITS.get(method.__name__, 0), most


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("scope", ["last_layer", "last_block", "all"])
def test_every_solver(solver, scope, device, tmp_path):
    if scope != "last_layer" and solver in (ExactLastLayer, RelativeInfluence):
        pytest.skip("the last layer alone")
    options = {} if solver in (ExactLastLayer, RelativeInfluence) else {"scope": scope}
    steps = 4 if scope == "last_layer" else 2
    module, _, _ = train(device, tmp_path, UDA(threshold=0.3), solver(**options), steps=steps)
    assert module.weighting.stats.updates.sum() > 0


OPTIONS = {
    "iterative exact": {"influence": ExactLastLayer(max_dense=1, damping=1.0)},
    "pseudo-inverse": {"influence": ExactLastLayer(damping=0.0)},
    "fisher": {"influence": Larsen("fisher")},
    "activation": {"influence": Identity(scope="all", engine="activation")},
    "vmap": {"influence": Identity(scope="last_block", engine="vmap")},
    "serial": {"influence": Identity(scope="last_block", engine="serial")},
    "two classes": {"classes": 2},
    "plain head": {"classes": 2, "symmetric_binary_head": False},
    "CTAugment": {"algorithm": FixMatch(threshold=0.3, strong=[CTAugment()])},
    "annealing": {"algorithm": UDA(threshold=0.3, annealing="linear")},
    "fixed": {"weighting_kind": "fixed"},
    "single": {"weighting_kind": "single"},
    "disk": {"weighting_storage": "disk"},
    "per_example": {"weighting_bias_correction": "per_example"},
    "sgd": {"weighting_optimizer": "sgd"},
    "adam": {"weighting_optimizer": "adam"},
    "bounds": {"weighting_bounds": (0.0, 2.0)},
    "weighting_update_masked": {"weighting_update_masked": True},
    "skip": {"nonfinite": "skip"},
    "batch statistics": {"weighting_batchnorm": "train"},
    "theta_accumulate": {"theta_accumulate": 2, "theta_clip_norm": 1.0},
    "theta_decay_all": {"theta_decay_all": True, "theta_schedule": "linear", "theta_lr_warmup_steps": 2},
    "no average": {"theta_ema_decay": 0.0},
    "apart": {"target_pass": "apart"},
    "labeled_augmentation": {"labeled_augmentation": [nn.Dropout(0.1)]},
    "bf16-mixed": {"precision": MixedPrecision("bf16-mixed", DEVICE.type)},
    "contiguous": {"channels_last": False},
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option(case, device, tmp_path):
    options = {"algorithm": UDA(threshold=0.5 if "classes" in OPTIONS[case] else 0.3)} | OPTIONS[case]
    train(device, tmp_path, options.pop("algorithm"), **options)


def test_predictions_and_resuming(device, tmp_path):
    module, trainer, _ = train(device, tmp_path, FixMatch(threshold=0.3))
    trainer.save_checkpoint(tmp_path / "4.ckpt")
    again, _, _ = train(device, tmp_path, FixMatch(threshold=0.3), steps=8, checkpoint=tmp_path / "4.ckpt")
    assert again.global_step == 8
    model = TrainedModel(module, images(3), str(DEVICE))
    found = model.probabilities(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert found.shape == (4, 3)


# ---- whole runs, with all that is written beside them ----


@pytest.fixture
def command(device, monkeypatch):
    """The command line, whose trainer and models are on the device; gives what the last run waited in θ steps."""
    make, counted = CLI._instantiate_trainer, []

    def placed(self, config, callbacks):
        config["strategy"] = accelerator.strategy()
        counted.append(Steps(device))
        return make(self, config, [counted[-1], *callbacks])

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return counted[-1].in_theta_steps

    monkeypatch.setattr(CLI, "_instantiate_trainer", placed)
    monkeypatch.setattr(trained, "_best_device", lambda: DEVICE.type)
    return run


def state(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value.nan_to_num() for name, value in saved.items() if isinstance(value, torch.Tensor)}


QUICK = [
    *("--trainer.val_check_interval", 3, "--trainer.log_every_n_steps", 1000, "--model.weighting.inner_steps", 2),
    *("--model.weighting.warmup_steps", 0, "--model.weighting.update_masked", "true", "--data.unlabeled_batch_size", 8),
]  # fmt: skip


def test_a_run_of_images_that_is_resumed_and_predicts(command, tmp_path):
    kept_aside = ["--data.num_labeled", 20, "--data.labeled_batch_size", 20, "--data.num_validation", 20]
    fit = ["fit", "--config", "digits_uda", *QUICK, *kept_aside, "--model.theta.schedule", "constant"]
    waited = command(*fit, "--runs", tmp_path / "whole", "--trainer.max_steps", 6)
    assert waited and not any(waited)
    command(*fit, "--runs", tmp_path / "parts", "--trainer.max_steps", 4)
    (whole,), (parts,) = (list((tmp_path / name).glob("*/*")) for name in ("whole", "parts"))
    command("resume", parts, "--trainer.max_steps", 6)
    torch.testing.assert_close(state(parts), state(whole), rtol=0, atol=0)
    assert (state(whole)["weighting.weights.values"] != 1).any()
    for verb in ("predict", "validate", "test"):
        command(verb, parts)


def test_texts(tiny_bert, tiny_imdb, monkeypatch, tmp_path):
    encoder = Transformer(
        str(tiny_bert)
    )  # before, for transformers makes networks on torch's own meta device first
    data = Imdb(
        root=tiny_imdb, cache=tmp_path / "cache", labeled="random", num_labeled=6, num_validation=6,
        labeled_batch_size=4, unlabeled_batch_size=8, tokenizer=str(tiny_bert),
    )  # fmt: skip
    with pretending(monkeypatch) as waits:
        method = UDA(threshold=None, annealing="linear", strong=["tf_idf"])
        module, _, waited = train(waits, tmp_path, method, classes=2, backbone=encoder, data=data)
        assert module.weighting.stats.updates.sum() > 0
    most = max(waited, key=Counter.total)
    assert most.total() <= WAITS_OF_TEXTS, most


# ---- the pretence itself ----


def refused(device, work, what):
    ours = torch.arange(4.0).to(DEVICE)
    assert isinstance(ours, OnDevice)
    with pytest.raises(OtherDeviceError, match=what):
        work(ours)


def test_it_refuses_what_cuda_refuses(device):
    host = torch.arange(4.0)
    refused(device, lambda x: x + host, "on tensors of two devices")
    refused(device, lambda x: torch.cat((x, host)), "on tensors of two devices")
    refused(device, lambda x: host[x.long()], "is indexed by one of the device")
    refused(device, lambda x: x.numpy(), "numpy")
    refused(device, lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()), "generator of cpu")
    refused(device, lambda x: x.index_put_((x.long(),), host), "values of the CPU|two devices")


def test_it_computes_and_counts(device):
    ours = torch.arange(4.0).to(DEVICE)
    assert (ours * 2 + torch.tensor(1.0)).host.tolist() == [1, 3, 5, 7]
    assert ours[torch.tensor([1, 2])].host.tolist() == [1, 2]
    ours += 1
    assert ours.host.tolist() == [1, 2, 3, 4]
    for work in (lambda: float(ours[0]), lambda: ours.tolist(), lambda: ours.cpu(), lambda: ours.nonzero()):
        before = device.total
        work()
        assert device.total == before + 1


def test_a_trial_on_the_device_that_lightning_only_pretends(device, tmp_path, monkeypatch):
    """How runs failed on every GPU: in ``setup`` the network is not where the module says that it is."""
    setup = SSLModule.setup

    def try_out(self, stage):
        setup(self, stage)
        few = self.data.sets["labeled"].__getitems__([0, 1])
        self.model(self.data.view(few.inputs.to(self.device), ()))

    monkeypatch.setattr(SSLModule, "setup", try_out)
    with pytest.raises(OtherDeviceError):
        train(device, tmp_path, FixMatch(threshold=0.3))
