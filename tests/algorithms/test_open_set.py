"""Open-set methods' losses and scores against their papers' equations, in float64; as ``test_losses.py`` has it."""

from dataclasses import replace

import torch
from equations import L, agree, labeled_loss

from ssl_weighting.algorithms.iomatch import IOMatch
from ssl_weighting.algorithms.openmatch import OpenMatch

C, U = 4, 8


def says_yes(net, features):
    """Probability that an example is of each class, by that class's own two logits."""
    z = net.heads["one_vs_all"](features)
    return torch.sigmoid(z[:, 1::2] - z[:, ::2])


def one_vs_all_loss(case, o):
    total = 0.0
    for i in range(L):
        y = int(case.labels[i])
        total = total - o[i, y].log() - min((1 - o[i, c]).log() for c in range(C) if c != y)
    return total / L


def test_openmatch(case):
    c = case(OpenMatch(threshold=0.8, entropy_coefficient=0.3, consistency_coefficient=0.7, coefficient=0.5))
    fixmatch = []

    def equation(net):
        images = torch.cat([c.labeled.inputs, *[c.view(name) for name in ("weak", "other", "strong")]])
        known, weak, other, strong = net.backbone(images).split([L, U, U, U])
        o, first, second = (says_yes(net, x) for x in (known, weak, other))
        z, q = net.heads["classifier"](strong), net.heads["classifier"](weak).detach().softmax(1)
        entropy = -sum((p * p.log() + (1 - p) * (1 - p).log()).mean() for p in (first, second)) / 2
        square = 2 * (first - second).square().sum() / U
        inliers = [i for i in range(U) if first[i, q[i].argmax()] > 0.5]
        sure = [i for i in inliers if q[i].max() >= 0.8]
        fixmatch.append((len(inliers), len(sure)))
        consistency = -sum(z[i].log_softmax(0)[q[i].argmax()] for i in sure) / len(inliers)
        loss = labeled_loss(c, net.heads["classifier"](known)) + one_vs_all_loss(c, o)
        loss = loss + 0.3 * entropy + 0.7 * (square + square.detach())  # told of both views
        return loss + (0.5 * consistency if c.context.step >= 1000 * 10 / 512 else 0)

    for step in (19, 20, 21, 22):
        c.context = replace(c.context, step=step)
        agree(c, equation)
        c.new_images()
    assert any(0 < sure < inliers < U for inliers, sure in fixmatch[1:]), fixmatch


def test_iomatch(case):
    c = case(
        IOMatch(
            threshold=0.8,
            open_threshold=0.6,
            coefficient=0.5,
            one_vs_all_coefficient=0.3,
            open_coefficient=0.7,
        )
    )
    seen, masks = [], []

    def equation(net):
        images = torch.cat([c.labeled.inputs, c.view("weak"), c.view("strong")])
        known, weak, strong = net.backbone(images).split([L, U, U])
        p = net.heads["classifier"](weak).detach().softmax(1)
        seen.append(p.mean(0))
        q = p * (1 / C + 1e-6) / (sum(seen) / len(seen) + 1e-6)
        q = q / q.sum(1, keepdim=True)
        o, o_weak = says_yes(net, known), says_yes(net, weak).detach()
        total = 0.0
        for i in range(U):
            s = sum(q[i, k] * (1 - o_weak[i, k]) for k in range(C))
            r = torch.stack([*[q[i, k] * o_weak[i, k] for k in range(C)], s])
            inlier, sure, opened = s < 0.5, q[i].max() >= 0.8, r.max() >= 0.6
            masks.append((bool(inlier), bool(sure), bool(opened)))
            if inlier and sure:
                total = total - 0.5 * (q[i] * net.heads["classifier"](strong[i]).log_softmax(0)).sum()
            if opened and c.context.step >= 1000 / 256:
                total = total - 0.7 * (r * net.heads["open"](strong[i]).log_softmax(0)).sum()
        known = labeled_loss(c, net.heads["classifier"](known))
        return known + 0.3 * one_vs_all_loss(c, o) + total / U

    for step in (10, 11, 2):
        c.context = replace(c.context, step=step)
        agree(c, equation)
        c.new_images()
    assert (True, True) in {mask[:2] for mask in masks}
    assert all(len(set(kind)) == 2 for kind in zip(*masks, strict=True)), masks


def test_own_scores_are_of_the_averaged_network(case):
    for method in (OpenMatch, IOMatch):
        c = case(method())
        with torch.no_grad():
            found = c.algorithm.own_scores(c.ema, c.view("weak"))
            x = c.ema.backbone(c.view("weak"))
            if method is OpenMatch:
                expected = says_yes(c.ema, x)[torch.arange(U), c.ema.heads["classifier"](x).argmax(1)]
            else:
                expected = 1 - c.ema.heads["open"](x).softmax(1)[:, C]
        torch.testing.assert_close(found, expected)
