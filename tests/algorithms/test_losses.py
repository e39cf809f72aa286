"""Every method's losses and their gradients against its paper's equations, written out here, in float64.

Only the network is shared with the methods; which images share batch statistics is part of the equations.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from equations import L, agree, labeled_loss

from ssl_weighting.algorithms import mixmatch
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT

C, U = 4, 8


def h(target, logits):
    """Cross-entropy of each example, H(target, p)."""
    return -(target * (logits - logits.logsumexp(1, keepdim=True))).sum(1)


def joint(case, net, *names):
    """Logits of the labelled images and of views that go through the network together."""
    images = torch.cat([case.labeled.inputs, *[case.view(name) for name in names]])
    return net(images).logits.split([L] + [U] * len(names))


def hard(q):
    return torch.eye(C, dtype=q.dtype)[q.argmax(1)]


def some(mask):
    assert 0 < float(mask.mean()) < 1
    return mask


def power(p, temperature):
    p = p ** (1 / temperature)
    return p / p.sum(1, keepdim=True)


def test_supervised(case):
    c = case(Supervised())
    agree(c, lambda net: labeled_loss(c, net(c.labeled.inputs).logits))


def test_pseudo_label(case):
    c = case(PseudoLabel(threshold=0.9, coefficient=2.0, ramp=0.4))

    def equation(net):
        known, z = net(c.labeled.inputs).logits, net(c.view("weak")).logits
        p = z.detach().softmax(1)
        total = 0.0
        for i in range(U):
            if p[i].max() > 0.9:
                total = total - z[i].log_softmax(0)[p[i].argmax()]
        return labeled_loss(c, known) + 2.0 * (10 / 400) * total / U

    some(agree(c, equation)[1].mask)


def test_vat(case):
    c = case(VAT(epsilon=2.0, xi=1e-2, coefficient=0.3, ramp=0.4, entropy_coefficient=0.06))

    def equation(net):
        torch.manual_seed(1)
        u = c.view("weak")
        known, z = net(c.labeled.inputs).logits, net(u).logits
        p = z.detach().softmax(1)

        def divergence(r):
            return (p * (p.log() - net(u + r).logits.log_softmax(1))).sum(1)

        d = torch.randn_like(u)
        d = (1e-2 * d / d.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
        g = torch.autograd.grad(divergence(d).mean(), d)[0]
        r = 2.0 * g / g.flatten(1).norm(dim=1)[:, None, None, None]
        entropy = -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
        return labeled_loss(c, known) + 0.3 * (10 / 400) * divergence(r).mean() + 0.06 * entropy

    torch.manual_seed(1)
    agree(c, equation)


def test_mean_teacher(case):
    c = case(MeanTeacher(coefficient=50.0, ramp=0.4))

    def equation(net):
        known, z = net(c.labeled.inputs).logits, net(c.view("student")).logits
        teacher = copy.deepcopy(c.ema).train()
        q = teacher(c.view("teacher")).logits.softmax(1)
        square = sum(((z[i].softmax(0) - q[i]) ** 2).sum() / C for i in range(U)) / U
        return labeled_loss(c, known) + 50 * (10 / 400) * square

    agree(c, equation)


@pytest.mark.parametrize("annealing", [None, "linear", "exp", "log"])
def test_uda(case, annealing):
    c = case(UDA(threshold=0.8, temperature=0.4, coefficient=0.7, annealing=annealing), step=100)

    def equation(net):
        known, plain, strong = joint(c, net, "plain", "strong")
        plain = plain.detach()
        y = (plain / 0.4).softmax(1)
        mask = (plain.softmax(1).max(1).values > 0.8).double()
        kl = (y * (y.log() - strong.log_softmax(1))).sum(1)
        losses = h(c.labeled.target, known)
        if annealing is None:
            supervised = losses.mean()
        else:
            t = 0.1
            a = {"linear": t, "exp": math.exp(5 * (t - 1)), "log": 1 - math.exp(-5 * t)}[annealing]
            threshold = a * (1 - 1 / C) + 1 / C
            kept = [i for i in range(L) if known[i].softmax(0)[c.labels[i]] <= threshold]
            assert 0 < len(kept) < L
            supervised = sum(losses[i] for i in kept) / len(kept)
        return supervised + 0.7 * (mask * kl).mean()

    some(agree(c, equation)[1].mask)


def test_fixmatch(case):
    c = case(FixMatch(threshold=0.6, coefficient=0.5))

    def equation(net):
        known, weak, strong = joint(c, net, "weak", "strong")
        q = weak.detach().softmax(1)
        mask = (q.max(1).values >= 0.6).double()
        return labeled_loss(c, known) + 0.5 * (mask * h(hard(q), strong)).mean()

    some(agree(c, equation)[1].mask)


def mix_draws(monkeypatch, n):
    """The same random shares (not yet made ≥ 1/2) and partners for the method and for the equations."""
    generator = torch.Generator().manual_seed(5)
    share = torch.rand(n, generator=generator).double()
    share = torch.maximum(share, 1 - share)
    partner = torch.randperm(n, generator=generator)
    monkeypatch.setattr(mixmatch, "draw_mixing", lambda size, alpha, like: (share, partner))
    return share, partner


def test_mixmatch(case, monkeypatch):
    c = case(MixMatch(temperature=0.5, coefficient=75.0, ramp=1 / 64))
    share, partner = mix_draws(monkeypatch, L + 2 * U)

    def equation(net):
        views = [c.view("weak_1"), c.view("weak_2")]
        with torch.no_grad():
            both = net(torch.cat(views)).logits.softmax(1)
            q = power((both[:U] + both[U:]) / 2, 0.5)
        x, y = torch.cat([c.labeled.inputs, *views]), torch.cat([c.labeled.target, q, q])
        mixed_x, mixed_y = [], []
        for i in range(len(x)):
            s, j = share[i], partner[i]
            mixed_x.append(s * x[i] + (1 - s) * x[j])
            mixed_y.append(s * y[i] + (1 - s) * y[j])
        z, y = net(torch.stack(mixed_x)).logits, torch.stack(mixed_y)
        brier = ((z[L:].softmax(1) - y[L:]) ** 2).sum() / (C * 2 * U)
        return h(y[:L], z[:L]).mean() + 75 * min(1, 10 / (1000 / 64)) * brier

    agree(c, equation)


def test_remixmatch(case, monkeypatch):
    k = 3
    c = case(ReMixMatch(num_strong=k, coefficient=1.5, strong_coefficient=0.5, rotation_coefficient=0.7))
    share, partner = mix_draws(monkeypatch, L + (k + 1) * U)
    c.algorithm.guesses.copy_(torch.rand(128, C))
    c.algorithm.guesses /= c.algorithm.guesses.sum(1, keepdim=True)
    c.algorithm.classes.copy_(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    guesses, classes = c.algorithm.guesses.double(), c.algorithm.classes.double()

    def equation(net):
        views = [c.view("weak"), *[c.view(f"strong_{i + 1}") for i in range(k)]]
        with torch.no_grad():
            p = net(views[0]).logits.softmax(1)
        p_model = guesses.sum(0) / 128
        q = p * (classes + 1e-6) / (p_model + 1e-6)
        q = power(q / q.sum(1, keepdim=True), 0.5)
        x, y = torch.cat([c.labeled.inputs, *views]), torch.cat([c.labeled.target, *[q] * (k + 1)])
        s, t = share[:, None, None, None], share[:, None]
        z, y = net(s * x + (1 - s) * x[partner]).logits, t * y + (1 - t) * y[partner]
        ramp = min(1, 10 / (1000 / 64))
        unmixed = h(q, net(views[1]).logits).mean()
        turns = [0, 0, 1, 1, 2, 2, 3, 3]
        turned = []
        for image, turn in zip(views[1], turns, strict=True):
            for _ in range(turn):  # a quarter turn: transpose, then flip the rows
                image = image.transpose(1, 2).flip(1)
            turned.append(image)
        rotation = F.cross_entropy(net(torch.stack(turned), head="rotation").logits, torch.tensor(turns))
        mixed = h(y[:L], z[:L]).mean() + 1.5 * ramp * h(y[L:], z[L:]).mean()
        return mixed + 0.5 * ramp * unmixed + 0.7 * rotation

    agree(c, equation)


def test_flexmatch(case):
    c = case(FlexMatch(threshold=0.9))
    c.algorithm.selection.learned[:20] = torch.tensor([0] * 8 + [1] * 6 + [2] * 5 + [3])
    last_sure = dict(enumerate(c.algorithm.selection.learned.tolist()))

    def equation(net):
        known, weak, strong = joint(c, net, "weak", "strong")
        q = weak.detach().softmax(1)
        counts = [sum(v == k for v in last_sure.values()) for k in range(C)]
        unused = len(last_sure) - sum(counts)
        total = 0.0
        for i in range(U):
            k = int(q[i].argmax())
            beta = counts[k] / max(*counts, unused)
            if q[i, k] >= beta / (2 - beta) * 0.9:
                total = total - strong[i].log_softmax(0)[k]
        for i in range(U):
            if q[i].max() >= 0.9:
                last_sure[int(c.index[i])] = int(q[i].argmax())
        return labeled_loss(c, known) + total / U

    for _ in range(3):
        terms = agree(c, equation)
        assert c.algorithm.selection.learned.tolist() == [last_sure[i] for i in range(len(last_sure))]
        c.new_images()
    assert float(terms[1].mask.mean()) > 0


def test_freematch(case):
    m = 0.7  # faster than 0.999, so that three steps matter
    c = case(FreeMatch(momentum=m, fairness_coefficient=0.3))
    c.algorithm.selection.level.fill_(0.75)
    state = {
        "tau": torch.tensor(0.75).double(),
        "p": torch.ones(C).double() / C,
        "h": torch.ones(C).double() / C,
    }
    masks = []

    def equation(net):
        known, weak, strong = joint(c, net, "weak", "strong")
        q = weak.detach().softmax(1)
        state["tau"] = m * state["tau"] + (1 - m) * q.max(1).values.mean()
        state["p"] = m * state["p"] + (1 - m) * q.mean(0)
        state["h"] = m * state["h"] + (1 - m) * hard(q).mean(0)
        thresholds = state["tau"] * state["p"] / state["p"].max()
        mask = torch.stack([(q[i].max() >= thresholds[q[i].argmax()]).double() for i in range(U)])
        masks.append(mask)
        p_s = strong.softmax(1)[mask.bool()]
        mean, histogram = p_s.mean(0), hard(p_s.detach()).mean(0)
        a = state["p"] / state["h"]
        b = torch.where(histogram > 0, mean / histogram.clamp(min=1e-9), 0)
        a, b = a / a.sum(), b / b.sum()
        fairness = (a * torch.log(b + 1e-12)).sum()
        return labeled_loss(c, known) + (mask * h(hard(q), strong)).mean() + 0.3 * fairness

    for _ in range(3):
        agree(c, equation)
        c.new_images()
    some(torch.cat(masks))


def test_softmatch(case):
    m = 0.2
    c = case(SoftMatch(momentum=m))
    state = {"p": None, "mu": 1 / C, "var": 1.0}

    def equation(net):
        known, weak, strong = joint(c, net, "weak", "strong")
        q = weak.detach().softmax(1)
        state["p"] = q.mean(0) if state["p"] is None else m * state["p"] + (1 - m) * q.mean(0)
        aligned = q * (1 / C + 1e-6) / (state["p"] + 1e-6)
        sure = (aligned / aligned.sum(1, keepdim=True)).max(1).values
        state["mu"] = m * state["mu"] + (1 - m) * sure.mean()
        state["var"] = m * state["var"] + (1 - m) * ((sure - sure.mean()) ** 2).sum() / (U - 1)
        weight = [
            1.0 if s >= state["mu"] else math.exp(-((s - state["mu"]) ** 2) / (2 * state["var"] / 4))
            for s in sure
        ]
        return labeled_loss(c, known) + (torch.tensor(weight).double() * h(hard(q), strong)).mean()

    for _ in range(3):
        some(agree(c, equation)[1].mask)
        c.new_images()
