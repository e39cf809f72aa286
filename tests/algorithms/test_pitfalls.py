"""What other implementations got wrong: each test names it, and shows that it is not so here."""

import copy
import socket
import subprocess
import sys

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_weighting.algorithms.base import Context, Labeled, batch_statistics_of, paused_statistics, sharpened
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch, draw_mixing
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch, rotated
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.augment import CTAugment
from ssl_weighting.augment.ops import OPS
from ssl_weighting.backbones.wide_resnet import WideResNet


def norms(net):
    return [m for m in net.modules() if isinstance(m, _BatchNorm)]


def test_mean_teacher_has_a_gradient_through_the_student_alone(case):
    """USB takes the student's logits from the teacher: its consistency gradient is zero."""
    c = case(MeanTeacher(), step=500)
    for parameter in c.ema.parameters():
        parameter.requires_grad_()
    c.terms()[1].loss().backward()
    assert all(p.grad.abs().sum() > 0 for p in c.net.backbone.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in c.ema.parameters())


def test_the_teachers_batch_norm_follows_the_student(case):
    """A teacher in evaluation mode has other statistics than the student it is compared to."""
    c = case(MeanTeacher())
    for parameter, other in zip(c.ema.parameters(), c.net.parameters(), strict=True):
        parameter.copy_(other.detach())
    before = copy.deepcopy(c.ema.state_dict())
    with torch.no_grad(), batch_statistics_of(c.net, c.ema):
        torch.testing.assert_close(c.ema(c.view("teacher")).logits, c.net(c.view("teacher")).logits)
    assert all(torch.equal(before[key], value) for key, value in c.ema.state_dict().items())
    assert not any(n.training for n in norms(c.ema))
    c.net.eval()
    with batch_statistics_of(c.net, c.ema):  # as in a Λ step
        assert not any(n.training for n in norms(c.ema))


def test_pseudo_label_gates_each_example_by_itself(case):
    """Google's mask (B, 1) times losses (B) is (B, B): unsure examples are trained on as well."""
    c = case(PseudoLabel(threshold=0.9, ramp=0.0))
    term = c.terms()[1]
    gradient = torch.autograd.grad(term.loss(), term.logits)[0].abs().sum(1)
    sure = term.logits.softmax(-1).amax(-1) > 0.9
    assert 0 < sure.sum() < len(sure)
    assert torch.equal(gradient > 0, sure)


def test_every_example_has_its_own_mixing_share():
    """USB and TorchSSL draw one share for the whole batch; Google's code one for each example."""
    share, partner = draw_mixing(5000, 0.75, torch.ones(1))
    assert len(share.unique()) > 4900
    assert share.min() >= 0.5
    assert partner.sort().values.equal(torch.arange(5000))
    beta = torch.distributions.Beta(0.75, 0.75).sample((200_000,))
    assert float(share.mean()) == pytest.approx(float(torch.maximum(beta, 1 - beta).mean()), abs=0.01)


def test_a_smaller_temperature_sharpens(case):
    """USB's UDA is handed a temperature, and returns the prediction as it was."""

    def confidence(method):
        return case(method).terms()[1].target.amax(-1).mean()

    assert confidence(UDA(temperature=0.4)) > confidence(UDA(temperature=1.0)) + 0.01
    p = torch.tensor([[0.5, 0.3, 0.2]]).double()
    torch.testing.assert_close(sharpened(p, 0.5), p**2 / (p**2).sum())
    assert torch.equal(sharpened(torch.tensor([[1.0, 0.0]]), 0.5), torch.tensor([[1.0, 0.0]]))
    for method in (MixMatch, ReMixMatch):
        c = case(method())
        targets = []
        for temperature in (0.5, 1.0):
            c.algorithm.temperature = temperature
            torch.manual_seed(0)
            targets.append(c.lambda_terms()[-1].target)
        assert not torch.allclose(*targets)


def test_confidence_is_that_before_sharpening(case):
    """LAMDA thresholds softmax(z / T): a lower threshold in disguise."""
    c = case(UDA(threshold=0.8, temperature=0.2))
    term = c.terms()[1]
    assert torch.equal(term.mask > 0, term.confidence > 0.8)
    assert ((term.target.amax(-1) > 0.8) & (term.mask == 0)).any()


def test_wide_resnet_uses_all_its_batch_norms():
    """KEK, TorchSSL and USB compute BN + ReLU for two units and feed the raw input to their convolutions."""
    net = WideResNet(10, 1)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.dim() == 1)
    units = [group[0] for group in net.groups]
    seen = {}
    for unit in units:
        unit.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
        unit.conv1.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
    net(torch.randn(4, 3, 32, 32))
    for unit in units:
        activated = unit.activation(unit.norm1(seen[unit]))
        torch.testing.assert_close(seen[unit.conv1], activated, rtol=1e-4, atol=1e-4)


def test_statistics_are_paused_without_copies(case):
    """USB clones and restores every buffer on each call."""
    c = case(PseudoLabel())
    buffers = [n.running_mean for n in norms(c.net)]
    before = [(b.data_ptr(), b.clone()) for b in buffers]
    with paused_statistics(c.net):
        inside = c.net(c.view("weak")).logits
    assert all(
        b.data_ptr() == place and b.equal(value) for b, (place, value) in zip(buffers, before, strict=True)
    )
    torch.testing.assert_close(c.net(c.view("weak")).logits, inside)
    assert not any(b.equal(value) for b, (_, value) in zip(buffers, before, strict=True))
    with pytest.raises(RuntimeError), paused_statistics(c.net):
        raise RuntimeError
    assert all(n.track_running_stats for n in norms(c.net))


def test_which_images_the_running_statistics_follow(case):
    """The labelled ones in Google's Pseudo-Label, VAT and Mean Teacher; all of them in the joint passes."""
    for method, joint in ((PseudoLabel(), False), (VAT(), False), (MeanTeacher(), False), (FixMatch(), True)):
        c = case(method)
        first = c.net.backbone.layers[0]
        images = [c.labeled.inputs, *([c.unlabeled.views[v] for v in method.views] if joint else [])]
        expected = 0.1 * first(torch.cat(images).flatten(1)).mean(0)
        c.terms()
        torch.testing.assert_close(norms(c.net)[0].running_mean, expected)


def test_vat_finds_the_direction_in_low_precision(case):
    """With ξ = 1e-6 in float32, or in bfloat16, the divergence is rounding noise."""
    c = case(VAT(xi=1e-2, epsilon=1.0))
    exact = case(VAT(xi=1e-4, epsilon=1.0))

    def direction(c, dtype, autocast):
        torch.manual_seed(2)
        net = copy.deepcopy(c.net).to(dtype).train()
        d = torch.randn(c.view("weak").shape)
        images = c.view("weak").to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), paused_statistics(net):
            plain = net(images)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "randn_like", lambda like: d.to(like.dtype))
                r = c.algorithm.perturbation(net, plain)
        assert all(p.grad is None for p in net.parameters())
        torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.ones(8, dtype=dtype))
        return r.double().flatten(1)

    reference = direction(exact, torch.float64, False)
    for autocast in (False, True):
        cosine = (direction(c, torch.float32, autocast) * reference).sum(1)
        assert cosine.mean() > 0.95


def test_ctaugment_learns_from_probes_by_the_averaged_weights(case):
    """Ren et al.'s step never updates the rates: their augmentation stays uniform."""
    for method in (FixMatch(strong=[CTAugment()]), FlexMatch(strong=[CTAugment()]), ReMixMatch()):
        c = case(method, size=32)
        (augmentation,) = method.strong
        c.ema.float()
        asked = []

        def show(steps, asked=asked, c=c):
            images = torch.rand(6, 3, 32, 32)
            assert steps[0] == "weak"
            for step in steps[1:]:
                images = step(images)
            asked.append(images)
            return Labeled(images, c.labeled.target.float())

        before = augmentation.rates.clone()
        with torch.no_grad():
            method.after_step(show, c.context)
            truth = c.ema(asked[0]).probabilities()[range(6), c.labels]
        changed = augmentation.rates != before
        assert changed.any()
        assert len(asked) == 1
        lowest = augmentation.rates[
            changed
        ].min()  # one bin, hit k ≥ 1 times: .99ᵏ + (1 − .99ᵏ) · mean proximity
        assert lowest >= 0.99**12 + (1 - 0.99**12) * truth.min() - 1e-6
        assert any("rates" in key for key in method.state_dict())


def test_remixmatch_strong_views_end_without_fixmatchs_cutout():
    (uncut,) = ReMixMatch().strong
    uncut.rates.zero_()
    uncut.rates[:, :, 0] = 1  # the mildest bins of all
    torch.manual_seed(0)
    uncut.draw = lambda batch: (
        torch.zeros(batch, 2).long(),
        torch.zeros(batch, 2, 2).long(),
    )  # identity twice
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(uncut(images), images)


def test_translations_are_fractions_of_the_image():
    """FixMatch's CTAugment hands ±0.3 to Pillow as pixels: an exact no-op."""
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16] = 1
    moved = OPS["translate_x"](image, torch.tensor([0.25]))
    assert abs(int(moved[0, 0, 0].argmax()) - 16) == 8


def test_remixmatch_aligns_with_what_was_seen_before_the_batch(case):
    c = case(ReMixMatch(num_strong=1))
    torch.testing.assert_close(
        c.algorithm.aligned(torch.eye(4)[:2] * 0.7 + 0.075), torch.eye(4)[:2] * 0.7 + 0.075
    )
    before = c.algorithm.guesses.clone()
    expected = copy.deepcopy(c.net)
    c.terms()
    assert torch.equal(c.algorithm.guesses[:-1], before[1:])
    guess = expected(c.view("weak")).probabilities().mean(0)
    torch.testing.assert_close(c.algorithm.guesses[-1].double(), guess, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        c.algorithm.classes.double(), 0.999 * 0.25 + 0.001 * c.labeled.target.mean(0), rtol=1e-5, atol=1e-7
    )


def test_rotations_cover_all_four_in_every_batch():
    images = torch.rand(10, 3, 5, 5)
    turned, turns = rotated(images)
    assert turns.bincount(minlength=4).tolist() == [3, 3, 2, 2]
    for image, result, turn in zip(images, turned, turns.tolist(), strict=True):
        assert torch.equal(result, image.rot90(turn, (1, 2)))


def test_without_rotation_there_is_no_head_and_no_forward_pass(case):
    c = case(ReMixMatch(num_strong=1, rotation_coefficient=0.0, strong_coefficient=0.0))
    assert list(c.net.heads) == ["classifier"]
    calls = []
    c.net.register_forward_hook(lambda *_: calls.append(1))
    names = [t.name for t in c.terms()]
    assert names == ["supervised", "mixed_weak", "mixed_strong_1"]
    assert len(calls) == 2  # the guess and the mixture


def test_flexmatch_keeps_two_bytes_an_example():
    method = FlexMatch()
    method.prepare(50_000, 10)
    assert sum(b.numel() * b.element_size() for b in method.buffers() if len(b) == 50_000) == 100_000


def test_ramps_are_linear_and_end():
    def ramp(step, fraction):
        return Context(step, 1000, None).ramp(fraction)

    assert [ramp(s, 0.4) for s in (0, 100, 400, 900)] == [0, 0.25, 1, 1]
    assert ramp(0, 0.0) == 1


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.iomatch import IOMatch
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.backbones import Classifier
from ssl_weighting.backbones.mlp import MLP

rank, port = int(sys.argv[1]), sys.argv[2]
def run(method, rows):
    torch.manual_seed(0)
    net = Classifier(MLP(12, (8,)), 4, extra_heads=method.extra_heads(4))
    torch.nn.init.normal_(net.heads["classifier"].weight, std=5)
    method.prepare(20, 4)
    views = {name: torch.randn(8, 3, 2, 2)[rows] for name in method.views}
    known = Labeled(torch.randn(8, 3, 2, 2)[rows], torch.eye(4)[torch.randint(4, (8,))][rows])
    method.loss_terms(net, known, Unlabeled(torch.randperm(20)[:8][rows], views), Context(5, 10, net))
    return [b.clone() for b in method.buffers()]

methods = [FlexMatch(threshold=0.5), FreeMatch(), SoftMatch(), ReMixMatch(num_strong=1), IOMatch()]
alone = [run(m, slice(0, 8)) for m in methods]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
for method, expected in zip(methods, alone):
    for a, b in zip(run(method, slice(4 * rank, 4 * rank + 4)), expected):
        torch.testing.assert_close(a, b, equal_nan=True)
assert (alone[0][0] >= 0).any()
dist.destroy_process_group()
"""


def test_running_state_is_that_of_all_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, str(rank), port], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [p.communicate(timeout=600)[1].decode() for p in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
