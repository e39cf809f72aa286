"""What does not fit is said before training, and nothing else is; trying it out leaves no trace."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from discovered import every_method, every_solver
from modules import digits, ssl_module

from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.errors import NonFiniteError, UnsolvedError, UserError
from ssl_weighting.guards import warn_without_weight_step
from ssl_weighting.influence import Influence
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.weighting import WeightingOptions


def module(influence, algorithm=None, backbone=None, **options):
    backbone = backbone or SmallConvNet(1, channels=(4, 4))
    return ssl_module(
        10, backbone, algorithm or UDA(), influence=influence, weighting_warmup_steps=100, **options
    )


def refusal(model):
    """What is said of a model, before its first θ step."""
    trainer = bare_trainer(1, "cpu")
    with pytest.raises(UserError) as said:
        trainer.fit(model, digits())
    assert trainer.global_step == 0
    assert "\n" not in str(said.value)
    return str(said.value)


class Scaled(Backbone):
    """Has a parameter of its own, which is in no layer that is known to be linear in it."""

    feature_dim = 64

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(64))

    def forward(self, inputs):
        return inputs.flatten(1) * self.factor


class Folded(Scaled):
    """Needs numbers on the CPU, which no derivative goes through."""

    def forward(self, inputs):
        return torch.from_numpy(super().forward(inputs).numpy())


class Answering(Influence):
    """Answers or fails as told."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, network, objective, validation):
        return self.answer(objective)


def failing(error):
    def fail(objective):
        raise error

    return Answering(fail)


@pytest.mark.parametrize("scope", ["backbon\\.", "layers.9", "rotation"])
def test_a_scope_without_parameters(scope):
    assert f"scope={scope!r}: matches no trainable parameter" in refusal(module(Identity(scope=scope)))


def test_an_engine_that_does_not_know_a_layer():
    said = refusal(module(Identity(scope="all", engine="activation"), backbone=Scaled()))
    assert "engine='activation': does not know the layer backbone (Scaled)" in said


@pytest.mark.parametrize("error", [RuntimeError("no rule\nfor this"), KeyError("ids"), NotImplementedError()])
def test_an_influence_that_cannot_take_the_network(error):
    said = refusal(module(failing(error)))
    assert said.startswith("model.influence=Answering: it cannot take model.backbone=SmallConvNet (")


def test_a_network_without_derivatives():
    said = refusal(module(Identity(scope="all"), backbone=Folded()))
    assert said.startswith("model.influence=Identity: it cannot take model.backbone=Folded (")


@pytest.mark.parametrize("answer", [lambda o: [], lambda o: [o.terms[1].mask.sum()]])
def test_an_influence_that_does_not_answer_for_every_example(answer):
    assert refusal(module(Answering(answer))).startswith("model.influence=Answering: must give influences of")


@pytest.mark.parametrize("error", [NonFiniteError("x"), UnsolvedError("x"), torch.linalg.LinAlgError("x")])
def test_numbers_of_a_few_examples_are_no_reason(error):
    bare_trainer(1, "cpu").fit(module(failing(error)), digits())


def test_warnings_about_a_few_examples_are_not_shown():
    def warn(objective):
        warnings.warn("of these examples", stacklevel=1)
        return [torch.zeros_like(t.mask) for t in objective.terms if t.row is not None]

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bare_trainer(1, "cpu").fit(module(Answering(warn)), digits())
    assert not [w for w in seen if "of these examples" in str(w.message)]


def test_an_influence_that_is_not_asked_is_not_tried():
    bare_trainer(1, "cpu").fit(module(Identity(scope="nothing"), weighting_kind="fixed"), digits())


@every_method
@every_solver
def test_whatever_works_is_let_through(method, solver):
    model = module(solver(), method(), weighting_inner_steps=1000)
    if (method, solver) == (MixMatch, RelativeInfluence):
        assert "none of the method's loss terms compares examples to a guess" in refusal(model)
    else:
        bare_trainer(1, "cpu").fit(model, digits())


class Careless(FixMatch):
    """Changes a buffer, and draws, whether it is to learn or not."""

    def prepare(self, num_unlabeled, num_classes):
        self.register_buffer("seen", torch.zeros(num_unlabeled))

    def loss_terms(self, model, labeled, unlabeled, context):
        self.seen[unlabeled.row] += 1 + random.random() + np.random.rand()
        return super().loss_terms(model, labeled, unlabeled, context)


@pytest.mark.parametrize("classes", [2, 9, 11])
def test_a_head_of_more_or_fewer_classes(classes):
    model = ssl_module(classes, SmallConvNet(1, channels=(4, 4)), UDA(), weighting_warmup_steps=100)
    expected = f"model.num_classes={classes}: the data has 10 classes; give num_classes=10"
    assert refusal(model) == expected


@pytest.mark.parametrize("influence", [RelativeInfluence, TruncatedUnroll])
def test_trying_out_leaves_no_trace(influence):
    model = module(influence(), Careless(strong=[CTAugment()]), weighting_batchnorm="train")
    try_out, tried = model.on_fit_start, []

    def everything():
        told = (
            model.weighting.influence.state(),
            random.getstate(),
            str(np.random.get_state()),
            model.latest,
        )
        modes = [m.training for m in model.modules()]
        gradients = [p.grad is None for p in model.parameters()]
        state = copy.deepcopy({k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)})
        return state | {"rng": torch.get_rng_state()}, (told, modes, gradients, model.skipped)

    def watched():
        before = everything()
        try_out()
        tried.append(everything())
        torch.testing.assert_close(tried[0][0], before[0], rtol=0, atol=0, equal_nan=True)
        assert tried[0][1] == before[1]

    model.on_fit_start = watched
    bare_trainer(1, "cpu").fit(model, digits())
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("warmup", "inner", "mend"),
    [
        (5, 100, "--model.weighting.warmup_steps 1 --model.weighting.inner_steps 1 or "),
        (50, 2, "--model.weighting.warmup_steps 1 or "),
        (0, 10, "type --model.weighting.inner_steps 1 or "),
    ],
)
def test_weights_that_will_not_move_are_said(warmup, inner, mend):
    options = WeightingOptions(warmup_steps=warmup, inner_steps=inner)
    with pytest.warns(UserWarning, match=rf"^model\.weighting\.warmup_steps={warmup}: no weight") as said:
        warn_without_weight_step(options, 9)
    assert mend in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_without_weight_step(options, warmup + inner)


def test_weights_that_will_not_move_are_said_before_training():
    with pytest.warns(UserWarning, match="no weight will move"):
        bare_trainer(1, "cpu").fit(module(Identity(scope="last_layer")), digits())


@pytest.mark.parametrize(("given", "better"), [("imagenet", "range"), ("range", "imagenet")])
def test_another_normalisation_than_the_encoders_is_said(given, better):
    from types import SimpleNamespace

    from ssl_weighting.guards import warn_of_normalisation

    half, imagenet = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    kinds = {"range": half, "imagenet": imagenet}
    data = SimpleNamespace(mean=kinds[given][0], std=kinds[given][1], normalise_by=given)
    expected = torch.nn.Module()
    expected.mean, expected.std = kinds[better]
    with pytest.warns(UserWarning, match=f"--data.normalise_by {better}"):
        warn_of_normalisation(expected, data)
    fits = torch.nn.Module()
    fits.mean, fits.std = kinds[given]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for silent in (fits, torch.nn.Module()):
            warn_of_normalisation(silent, data)
