"""The loop: what moves when, and by what."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from modules import digits, ssl_module

from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.stream import Stream
from ssl_weighting.errors import NonFiniteError, UserError
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.precision import check_precision
from ssl_weighting.trial import FEW


def module(algorithm=None, **options):
    return ssl_module(
        10,
        SmallConvNet(1, channels=(8, 8)),
        algorithm or UDA(),
        **(
            {"weighting_inner_steps": 3, "weighting_warmup_steps": 4, "weighting_update_masked": True}
            | options
        ),
    )


def train(model, data, steps=13, callbacks=(), **options):
    trainer = bare_trainer(steps, "cpu", *callbacks, **options)
    trainer.fit(model, data)
    return trainer


@pytest.fixture(autouse=True)
def _seed():
    seed_everything(0)


def influence_rows(model, data, number):
    """Rows of Λ in the Λ batch ``number``, from the stream's definition."""
    stream = Stream(data.num_unlabeled, data.unlabeled_batch_size, f"{data.seed} influence", "unlabeled")
    return set(stream.batch(number).tolist())


def test_lambda_moves_for_exactly_the_rows_of_lambda_batches():
    model, data = module(), digits()
    trainer = train(model, data, steps=13)
    assert trainer.global_step == 13
    expected = set().union(*(influence_rows(model, data, k) for k in range(3)))  # after steps 7, 10 and 13
    moved = set((model.weighting.weights.values != 1).nonzero().flatten().tolist())
    assert moved == expected
    assert set((model.weighting.stats.updates > 0).nonzero().flatten().tolist()) == expected
    assert int(model.weighting.stats.updates.sum()) == 3 * 16


def test_masked_examples_stay_unless_asked():
    class Masked(FixMatch):
        def loss_terms(self, *batch):
            terms = super().loss_terms(*batch)
            terms[1].mask[:] = 0
            terms[1].mask[3] = 1
            return terms

    for update_masked, each in ((False, 1), (True, 16)):
        model, data = module(Masked(), weighting_update_masked=update_masked), digits()
        train(model, data, steps=7)
        assert int((model.weighting.weights.values != 1).sum()) == each


def test_warmup_alone_leaves_lambda():
    model = module(weighting_warmup_steps=13)
    train(model, digits(), steps=13)
    assert bool((model.weighting.weights.values == 1).all())


@pytest.mark.parametrize("inner_steps", [1, 5])
def test_number_of_lambda_steps(inner_steps):
    calls = []

    class Counting(ExactLastLayer):
        def __call__(self, *arguments):
            calls.append(1)
            return super().__call__(*arguments)

    train(
        module(influence=Counting(), weighting_inner_steps=inner_steps, weighting_warmup_steps=2),
        digits(),
        steps=13,
    )
    assert len(calls) == 1 + 11 // inner_steps  # the first on a few examples, before training


def test_fixed_and_supervised_learn_no_weights():
    for options in ({"weighting_kind": "fixed"}, {"algorithm": Supervised()}):
        model = module(**options)
        train(model, digits())
        assert bool((model.weighting.weights.values == 1).all())


def test_single_learns_one_weight():
    model = module(weighting_kind="single")
    train(model, digits())
    assert model.weighting.weights.values.shape == (1,)
    assert float(model.weighting.weights.values) != 1


def test_fixed_at_one_is_the_plain_method():
    """θ after training with λ fixed at 1 equals a loop that knows nothing of weights."""
    model, data = (
        module(weighting_kind="fixed", theta_schedule="constant", weighting_warmup_steps=0),
        digits(),
    )
    plain = module(weighting_kind="fixed", theta_schedule="constant", weighting_warmup_steps=0)
    plain.load_state_dict(model.state_dict())
    seen = []

    class Recording(UDA):
        def loss_terms(self, network, labeled, unlabeled, context):
            seen.append((labeled, unlabeled))
            return super().loss_terms(network, labeled, unlabeled, context)

    model.algorithm = Recording()
    train(model, data, steps=4)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in plain.model.parameters() if p.dim() > 1]},
            {"params": [p for p in plain.model.parameters() if p.dim() == 1], "weight_decay": 0},
        ],
        lr=0.03,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
    )
    plain.model.train()
    for labeled, unlabeled in seen:
        x = torch.cat((labeled.inputs, unlabeled.views["plain"], unlabeled.views["strong"]))
        features = plain.model.backbone(x)
        head = plain.model.heads["classifier"]
        known, original, augmented = (features @ head.weight.T + head.bias).split([8, 16, 16])
        p = original.detach().softmax(-1)
        target = (original.detach() / 0.4).softmax(-1)
        kl = (target * (target.log() - augmented.log_softmax(-1))).sum(-1)
        loss = torch.nn.functional.cross_entropy(known, labeled.target) + ((p.amax(-1) > 0.8) * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(value, model.model.get_parameter(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_a_lambda_step_changes_nothing_but_lambda(batchnorm):
    model, data = (
        module(weighting_batchnorm=batchnorm, weighting_warmup_steps=0, weighting_inner_steps=5),
        digits(),
    )
    before = {}

    class Watching(ExactLastLayer):
        def __call__(self, network, objective, validation):
            norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            assert all(m.training == (batchnorm == "train") for m in norms)
            return super().__call__(network, objective, validation)

    class Compare(Callback):
        def on_train_batch_end(self, *_):
            for k, v in before.items():
                assert torch.equal(v, model.model.state_dict()[k]), k
            assert all(
                m.training and m.momentum == 0.1 for m in model.model.modules() if hasattr(m, "momentum")
            )

    model.weighting.influence = Watching()
    fresh_batch = model.fresh_batch

    def watched():
        before.update({k: v.clone() for k, v in model.model.state_dict().items()})
        return fresh_batch()

    model.fresh_batch = watched
    train(model, data, steps=5, callbacks=[Compare()])
    assert before


def test_moving_average_of_theta():
    model, data = module(theta_ema_decay=0.9, weighting_kind="fixed"), digits()
    name = "heads.classifier.weight"
    expected = model.model.get_parameter(name).detach().clone()
    update = model.ema.update

    def watched(source):
        expected.mul_(0.9).add_(source.get_parameter(name).detach(), alpha=0.1)
        update(source)

    model.ema.update = watched
    train(model, data, steps=6)
    torch.testing.assert_close(model.ema.model.get_parameter(name), expected)
    torch.testing.assert_close(
        model.ema.model.get_buffer("backbone.stages.0.1.running_mean"),
        model.model.get_buffer("backbone.stages.0.1.running_mean"),
    )


def test_clipping_and_accumulation():
    """With plain SGD of step 1, θ moves by at most the clip norm in every step."""

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    model = module(
        theta_optimizer=sgd,
        theta_clip_norm=1e-3,
        theta_accumulate=2,
        theta_schedule="constant",
        weighting_kind="fixed",
    )
    before = {k: v.detach().clone() for k, v in model.model.named_parameters()}
    trainer = train(model, digits(), steps=3)
    assert trainer.global_step == 3
    moved = math.sqrt(
        sum(float((v.detach() - before[k]).square().sum()) for k, v in model.model.named_parameters())
    )
    assert 0 < moved <= 3e-3 * 1.0001


def test_accumulated_gradients_are_averaged():
    """Two half batches make the θ step of the mean of their gradients."""

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    gradients = []
    model = module(
        theta_optimizer=sgd,
        theta_accumulate=2,
        theta_schedule="constant",
        weighting_kind="fixed",
        channels_last=False,
    )
    before = model.model.heads["classifier"].bias.detach().clone()
    backward = model.manual_backward

    def watched(loss):
        gradients.append(
            torch.autograd.grad(loss, model.model.heads["classifier"].bias, retain_graph=True)[0]
        )
        backward(loss)

    model.manual_backward = watched
    train(model, digits(), steps=1)
    assert len(gradients) == 2
    torch.testing.assert_close(
        model.model.heads["classifier"].bias.detach(), before - gradients[0] - gradients[1]
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine_7_16", [0.5, 1.0, math.cos(7 * math.pi / 16 / 8)]),
        ("cosine_7_8", [0.5, 1.0, math.cos(7 / 8 * math.pi / 2 / 8)]),
        ("linear", [0.5, 0.8, 0.7]),
        ("constant", [0.5, 1.0, 1.0]),
    ],
)
def test_schedules(schedule, expected):
    rates = []
    model = module(theta_schedule=schedule, theta_lr_warmup_steps=2, weighting_kind="fixed")
    update = model.ema.update

    def watched(source):
        rates.append(model.optimizers().param_groups[0]["lr"])
        update(source)

    model.ema.update = watched
    train(model, digits(), steps=10)
    assert rates[:3] == pytest.approx([0.03 * f for f in expected])


def test_weight_decay_is_on_kernels_alone_unless_asked():
    for decay_all, others in ((False, 0.0), (True, 5e-4)):
        model = module(theta_decay_all=decay_all, weighting_kind="fixed")
        train(model, digits(), steps=1)
        by_group = {
            group["weight_decay"]: {p.dim() for p in group["params"]}
            for group in model.optimizers().param_groups
        }
        assert by_group[5e-4] >= {2, 4}
        assert (1 in by_group[5e-4]) == decay_all
        assert others in by_group


def test_bfloat16_trains_and_float16_is_refused():
    model = module()
    train(model, digits(), steps=7, precision="bf16-mixed")
    assert bool((model.weighting.weights.values != 1).any())
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed.*bf16-mixed"):
        check_precision("16-mixed")  # on a CPU Lightning itself turns it into bfloat16


@pytest.mark.parametrize("where", ["theta", "lambda"])
def test_not_a_number_stops_with_step_and_name(where):
    class Broken(UDA):
        def loss_terms(self, network, labeled, unlabeled, context):
            terms = super().loss_terms(network, labeled, unlabeled, context)
            if where == "theta" and context.step == 5:
                terms[1].target[:] = float("nan")
            return terms

    class BrokenInfluence(ExactLastLayer):
        def __call__(self, *arguments):
            return [v * float("nan") for v in super().__call__(*arguments)]

    model = module(Broken(), influence=BrokenInfluence() if where == "lambda" else None)
    match = (
        r"loss term 'consistency' is not finite at step 5" if where == "theta" else r"influence.*at step 7"
    )
    with pytest.raises(NonFiniteError, match=match):
        train(model, digits())
    assert bool(model.weighting.weights.values.isfinite().all())


def test_runs_with_one_seed_are_the_same():
    first, second = module(), module()
    second.load_state_dict(first.state_dict())
    train(first, digits())
    train(second, digits())
    assert torch.equal(first.weighting.weights.values, second.weighting.weights.values)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"weighting_inner_steps": 0}, "model.weighting.inner_steps=0"),
        ({"weighting_warmup_steps": -1}, "model.weighting.warmup_steps=-1"),
        ({"weighting_lr": 0.0}, "model.weighting.lr=0.0"),
        ({"weighting_bounds": (2.0, 0.0)}, r"model.weighting.bounds=\[2.0, 0.0\]"),
        ({"weighting_init": 3.0, "weighting_bounds": (0.0, 2.0)}, "model.weighting.init=3.0"),
        ({"weighting_init": 0.0, "weighting_kind": "fixed"}, "model.weighting.init=0.0: .*; give 1"),
        ({"theta_accumulate": 0}, "model.theta.accumulate=0"),
        ({"theta_ema_decay": 1.0}, "model.theta.ema_decay=1.0"),
        ({"theta_clip_norm": 0.0}, "model.theta.clip_norm=0.0"),
    ],
)
def test_bad_options_are_named(options, key):
    with pytest.raises(UserError, match=key):
        module(**options)


def test_truncated_unroll_is_handed_the_steps_that_were_made():
    """Walking a handed-over step forwards by its own formula gives the next step's parameters."""
    from ssl_weighting.influence.truncated_unroll import TruncatedUnroll

    steps = []

    class Watching(TruncatedUnroll):
        def record_step(self, step):
            if model.global_step or model.model.heads.classifier.weight.grad is not None:  # not tried out
                steps.append((step, {k: p.grad.clone() for k, p in model.model.named_parameters()}))
            super().record_step(step)

    model = module(influence=Watching(3), theta_clip_norm=0.5)
    train(model, digits(), steps=8)
    assert len(steps) == 8
    assert bool((model.weighting.weights.values != 1).any())
    buffers = {k: torch.zeros_like(p) for k, p in model.model.named_parameters()}
    after = [s.parameters for s, _ in steps[1:]] + [dict(model.model.named_parameters())]
    for (step, gradient), expected in zip(steps, after, strict=True):
        assert step.nesterov
        for k, theta in step.parameters.items():
            g = step.gradient_scale * gradient[k] + step.weight_decay[k] * theta
            buffers[k] = step.momentum * buffers[k] + g
            theta = theta - step.lr * (g + step.momentum * buffers[k])
            torch.testing.assert_close(theta, expected[k].detach(), rtol=1e-4, atol=1e-6)
    assert steps[0][0].gradient_scale < 1


def test_truncated_unroll_refuses_other_optimisers():
    from ssl_weighting.influence.truncated_unroll import TruncatedUnroll

    model = module(influence=TruncatedUnroll(2), theta_optimizer=torch.optim.Adam)
    with pytest.raises(UserError, match=r"TruncatedUnroll.*SGD"):
        train(model, digits())


def test_a_lambda_step_sees_theta_after_the_step_in_bfloat16():
    """Autocast keeps low-precision copies of θ for as long as a training step lasts, over θ's own step."""
    differences = []

    class Watching(ExactLastLayer):
        def __call__(self, network, objective, validation):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                fresh = network(validation.inputs).logits
            differences.append(float((fresh - validation.logits).abs().max()))
            return super().__call__(network, objective, validation)

    train(
        module(influence=Watching(), weighting_inner_steps=1, weighting_warmup_steps=0),
        digits(),
        steps=4,
        precision="bf16-mixed",
    )
    assert differences == [0.0] * 5  # the first on a few examples, before training


class _Blank(torch.nn.Module):
    """Shows nothing of the pictures, and counts them."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return torch.zeros_like(images)


def test_labelled_examples_alone_get_their_augmentation():
    blank = _Blank()
    data = digits()
    train(module(Supervised(), labeled_augmentation=[blank]), data, steps=3)
    assert blank.seen == FEW + 3 * data.labeled_batch_size  # a few before training, to see whether they fit
