"""What every method of the package must keep to. Methods are found, not listed."""

import copy
import functools
import inspect
from dataclasses import replace

import pytest
import torch
from discovered import METHODS, every_method
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_weighting.algorithms.base import Labeled, Unlabeled
from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.backbones import Classifier
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.errors import UserError
from ssl_weighting.terms import Objective


def shown(images, steps):
    for step in steps:
        images = RandomFlipCrop()(images) if step == "weak" else step(images)
    return 2 * images - 1


def images(number):
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(number))


@functools.cache  # CTAugment on a CPU takes its time
def views(method):
    algorithm = method()
    torch.manual_seed(1)
    labeled = shown(images(6), algorithm.labeled_view)
    return labeled, {name: shown(images(8), steps) for name, steps in algorithm.views.items()}


@pytest.fixture
def real(case):
    """A case whose views are made by the method's own augmentations, of 32×32 images."""

    def make(method):
        c = case(method(), size=32, dtype=torch.float32, step=500)
        c.net = Classifier(
            SmallConvNet(3, channels=(4, 8)), 4, extra_heads=c.algorithm.extra_heads(4)
        ).train()
        c.ema = copy.deepcopy(c.net).eval().requires_grad_(False)
        c.context = replace(c.context, ema=c.ema)
        c.show = lambda steps: Labeled(shown(images(6), steps), c.labeled.target)
        labeled, unlabeled = views(method)
        c.labeled, c.unlabeled = Labeled(labeled, c.labeled.target), Unlabeled(c.index, unlabeled)
        return c

    return make


def state(c):
    modules = (c.net, c.ema, c.algorithm)
    return copy.deepcopy([m.state_dict() for m in modules]), [
        m.training for n in modules for m in n.modules()
    ]


def set_threshold(algorithm, threshold):
    selection = getattr(algorithm, "selection", None)
    if hasattr(selection, "threshold"):
        selection.threshold = threshold


def same(before, after):
    assert before[1] == after[1]
    for a, b in zip(before[0], after[0], strict=True):
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_all_methods_are_here():
    assert {m.__name__ for m in METHODS} >= {
        "FixMatch", "FlexMatch", "FreeMatch", "MeanTeacher", "MixMatch", "PseudoLabel", "ReMixMatch",
        "SoftMatch", "Supervised", "UDA", "VAT",
    }  # fmt: skip


@every_method
def test_terms(real, method):
    c = real(method)
    terms = c.terms()
    assert len({t.name for t in terms}) == len(terms)
    assert any(t.row is None for t in terms)
    assert any(t.row is not None for t in terms) == bool(c.algorithm.views)
    for t in terms:
        n, classes = t.logits.shape
        assert t.features.shape[0] == n == len(t.mask)
        assert classes == c.net.heads[t.head].weight.shape[0]
        assert t.target.shape == t.logits.shape
        assert not t.target.requires_grad
        assert not t.mask.requires_grad
        assert t.mask.is_floating_point()
        assert t.mask.isfinite().all()
        assert (t.mask >= 0).all()
        assert t.target.isfinite().all()
        assert 0 <= t.scale < float("inf")
        assert t.logits.requires_grad
        if t.row is not None:  # one row for every example of the batch
            assert t.row.sort().values.equal(c.index.sort().values)
        assert t.confidence is None or (t.confidence.shape == t.mask.shape and not t.confidence.requires_grad)


@every_method
def test_a_theta_step_moves_theta_and_the_running_statistics_once(real, method):
    c = real(method)
    ema = copy.deepcopy(c.ema.state_dict())
    terms = c.terms()
    unlabeled = [t.scale * t.distance.value(t.logits, t.target).mean() for t in terms if t.row is not None]
    if unlabeled:  # masks left out, for an untrained network is sure of nothing
        torch.stack(unlabeled).sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in c.net.backbone.parameters() if p.dim() > 1
        )
    assert {int(m.num_batches_tracked) for m in c.net.modules() if isinstance(m, _BatchNorm)} == {1}
    assert all(m.track_running_stats for m in c.net.modules() if isinstance(m, _BatchNorm))
    assert all(torch.equal(value, ema[key]) for key, value in c.ema.state_dict().items())
    assert not any(m.training for m in c.ema.modules())


@every_method
def test_a_lambda_step_changes_nothing(real, method):
    c = real(method)
    set_threshold(c.algorithm, 0.1)  # everything is sure
    before = state(c)
    terms = c.lambda_terms()
    same(before, state(c))
    assert not any(t.logits.requires_grad for t in terms)
    assert all(p.grad is None for p in c.net.parameters())


@every_method
def test_terms_can_be_evaluated_again(real, method):
    c = real(method)
    parameters = dict(c.net.named_parameters()) | dict(c.net.named_buffers())
    for t in c.lambda_terms():
        with torch.no_grad():
            again = functional_call(c.net.eval(), parameters, (t.inputs, t.head))
        torch.testing.assert_close(again.logits, t.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.features, t.features, rtol=1e-4, atol=1e-5)


@every_method
def test_all_that_it_keeps_is_in_its_state(real, method):
    c = real(method)
    for _ in range(2):
        c.terms()
        with torch.no_grad():
            c.algorithm.after_step(c.show, c.context)
    fresh = method()
    fresh.prepare(40, 4)
    fresh.load_state_dict(c.algorithm.state_dict())
    same(([c.algorithm.state_dict()], []), ([fresh.state_dict()], []))
    torch.manual_seed(7)
    expected = c.lambda_terms()
    c.algorithm = fresh
    torch.manual_seed(7)
    for a, b in zip(expected, c.lambda_terms(), strict=True):
        torch.testing.assert_close((a.mask, a.target, a.logits), (b.mask, b.target, b.logits))


@every_method
def test_bfloat16(real, method):
    c = real(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = c.terms()
        loss = Objective(terms, [None] * len(terms)).loss()
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(t.target.dtype == torch.float32 for t in terms)
    assert all(p.grad.isfinite().all() for p in c.net.backbone.parameters())


@every_method
def test_a_batch_of_which_nothing_is_selected(real, method):
    c = real(method)
    for head in c.net.heads.values():  # as unsure as can be
        torch.nn.init.zeros_(head.weight)
    set_threshold(c.algorithm, 1.0)
    terms = c.terms()
    loss = Objective(terms, [None] * len(terms)).loss()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in c.net.parameters())


def numbers():
    for method in METHODS:
        for name, parameter in inspect.signature(method.__init__).parameters.items():
            if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
                yield pytest.param(method, name, type(parameter.default), id=f"{method.__name__}-{name}")


@pytest.mark.parametrize(("method", "name", "kind"), list(numbers()))
def test_bad_numbers_are_refused_by_name(method, name, kind):
    for bad in [-1] if kind is int else [-1.0, float("nan")]:
        with pytest.raises(UserError, match=rf"^model\.algorithm\.{name}={bad}: must [^\n]*$"):
            method(**{name: bad})
