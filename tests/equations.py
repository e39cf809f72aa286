"""A method's loss against its paper's equations, for the cases of ``tests/algorithms``."""

import copy

import pytest
import torch

from ssl_weighting.terms import Objective

L = 6
"""Labelled examples of a case."""


def agree(case, equation):
    """Value and gradient of the method's loss are those of ``equation(net)``."""
    net = copy.deepcopy(case.net)
    terms = case.terms()
    loss = Objective(terms, [None] * len(terms)).loss()
    loss.backward()
    expected = equation(net)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-9)
    for mine, theirs in zip(case.net.parameters(), net.parameters(), strict=True):
        a, b = (torch.zeros_like(p) if p.grad is None else p.grad for p in (mine, theirs))
        assert (a - b).norm() <= 1e-6 * b.norm() + 1e-9
    case.net.zero_grad()
    return terms


def labeled_loss(case, logits):
    return sum(-logits[i].log_softmax(0)[case.labels[i]] for i in range(L)) / L
