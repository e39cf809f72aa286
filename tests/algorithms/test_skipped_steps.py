"""``nonfinite: skip``: one bad batch costs one θ step, whatever the method keeps besides θ."""

import pytest
import torch
from discovered import every_method
from lightning.pytorch import seed_everything
from modules import grouped
from torch import nn

from ssl_weighting.algorithms.base import Algorithm
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.module import SSLModule

STEPS, BAD = 40, 5


class Net(Backbone):
    """A small network that gives no number for the batches of one θ step."""

    feature_dim = 6

    def __init__(self, norm=True, rows=slice(None), value=float("nan")):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU())
        self.bad, self.rows, self.value = False, rows, value

    def forward(self, inputs):
        features = self.body(inputs).mean((2, 3))
        if self.bad and self.training:
            features = features.clone()
            features[self.rows] = self.value
        return features


def kept(module):
    """What a checkpoint holds of a module, and what its influence remembers."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    steps = module.weighting.influence.state() or []
    state |= {
        f"step {i}: {name}": p for i, step in enumerate(steps) for name, p in step["parameters"].items()
    }
    return {name: value.clone() for name, value in state.items()}


class Module(SSLModule):
    """Its network is bad in one batch of one θ step; what it was before and after that step is kept."""

    bad_batch = 0

    def training_step(self, batch, batch_idx):
        self.batch_idx = batch_idx
        super().training_step(batch, batch_idx)

    def at_bad_step(self):
        return self.batch_idx // self.batches_per_step == self.bad_batch // self.batches_per_step

    def objective(self, batch):
        if "validation" in batch:
            return super().objective(batch)
        if self.at_bad_step() and self.batch_idx % self.batches_per_step == 0:
            self.before = kept(self)
        self.model.backbone.bad = self.batch_idx == self.bad_batch
        found = super().objective(batch)
        self.model.backbone.bad = False
        return found

    def after_theta_step(self, *arguments):
        super().after_theta_step(*arguments)
        if self.at_bad_step():
            self.after = kept(self)


def train(algorithm, bad, steps=STEPS, net=None, influence=None, **options):
    seed_everything(0, verbose=False)
    labels = torch.arange(120) % 3
    images = (torch.rand(120, 1, 8, 8) + 0.3 * labels[:, None, None, None]).clamp(0, 1)
    data = TensorData(
        images,
        labels,
        num_labeled=12,
        num_validation=30,
        labeled_batch_size=12,
        unlabeled_batch_size=16,
        validation_batch_size=30,
        augmentations={"weak": lambda x: x},
    )
    defaults = {
        "weighting_inner_steps": 2,
        "theta_ema_decay": 0.9,
        "nonfinite": "skip",
        "weighting_update_masked": True,
    }
    module = Module(
        3, net or Net(), algorithm, influence or ExactLastLayer(damping=1000.0), **grouped(defaults | options)
    )
    module.bad_batch = bad
    bare_trainer(steps, "cpu").fit(module, data)
    return module


@every_method
@pytest.mark.parametrize("options", [{}, {"theta_accumulate": 2}], ids=str)
def test_one_bad_batch_costs_one_step(method, options):
    module = train(method(), BAD * options.get("theta_accumulate", 1), **options)
    assert module.skipped == 1
    assert module.global_step == STEPS
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and not name.startswith("weighting.stats."):
            assert value.isfinite().all(), name


def left_alone(module):
    assert module.skipped == 1
    assert module.before.keys() == module.after.keys()
    for name, value in module.before.items():
        assert torch.equal(value.nan_to_num(7), module.after[name].nan_to_num(7)), name


@every_method
@pytest.mark.parametrize("bad", [6, 7], ids=["first batch of the step", "last batch of the step"])
def test_a_skipped_step_leaves_everything_as_it_was(method, bad):
    left_alone(train(method(), bad, 4, theta_accumulate=2))


def test_rates_of_ctaugment_and_recorded_steps_are_left():
    influence = TruncatedUnroll(steps=2)
    left_alone(train(FixMatch(threshold=0.4, strong=[CTAugment()]), 4, 5, influence=influence))


@pytest.mark.parametrize("method", [FixMatch, FreeMatch, FlexMatch])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_guess_without_a_bad_gradient_is_one_too(method, value):
    """Without batch norm one bad guess is masked: θ's gradient is finite, and what the method keeps is not."""
    # labelled examples, then the weak view: its first example
    module = train(method(), BAD, net=Net(norm=False, rows=slice(12, 13), value=value))
    assert module.skipped <= 1
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.startswith("weighting.stats."):
            assert tensor.isfinite().all(), name


class Counting(Algorithm):
    """A method that keeps a number outside buffers, and replaces a buffer instead of filling it."""

    views = FixMatch().views

    def __init__(self):
        super().__init__()
        self.inner, self.count = FixMatch(threshold=0.4), 0
        self.register_buffer("seen", torch.zeros(1))

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]

    def loss_terms(self, model, labeled, unlabeled, context):
        terms = self.inner.loss_terms(model, labeled, unlabeled, context)
        if context.learning:
            self.count += 1
            self.seen = torch.cat((self.seen, terms[0].logits.detach().sum()[None]))
        return terms


def test_a_method_of_a_users_own():
    module = train(Counting(), BAD)
    assert module.skipped == 1
    assert module.algorithm.count == STEPS - 1
    assert len(module.algorithm.seen) == STEPS
    assert module.algorithm.seen.isfinite().all()
