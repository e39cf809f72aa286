"""A small network in float64 and batches of random images, for every method."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled
from ssl_weighting.backbones import Backbone, Classifier

CLASSES, LABELED, UNLABELED, POOL = 4, 6, 8, 40


class Tiny(Backbone):
    """Two layers with batch norm: float64 convolutions are slow on a CPU."""

    feature_dim = 6

    def __init__(self, size):
        super().__init__()
        layers = []
        for before, after in ((3 * size * size, 8), (8, 6)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs):
        return self.layers(inputs.flatten(1))


class Case:
    """One batch for one method.

    Attributes:
        net: The classifier, with batch norm, in training mode.
        ema: Another θ, in evaluation mode.
    """

    def __init__(self, algorithm, seed=0, size=8, dtype=torch.float64, step=10, total_steps=1000):
        torch.manual_seed(seed)
        self.algorithm = algorithm
        net = Classifier(Tiny(size), CLASSES, extra_heads=algorithm.extra_heads(CLASSES))
        self.net = net.to(dtype).train()
        for head in self.net.heads.values():
            torch.nn.init.normal_(head.weight, std=3.0)  # so that some predictions are sure and some are not
            torch.nn.init.normal_(head.bias)
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        for parameter in self.ema.parameters():
            parameter.mul_(0.9)
        algorithm.prepare(POOL, CLASSES)
        self.labels = torch.randint(CLASSES, (LABELED,))
        self.labeled = Labeled(
            torch.randn(LABELED, 3, size, size, dtype=dtype), F.one_hot(self.labels, CLASSES).to(dtype)
        )
        self.index = torch.randperm(POOL)[:UNLABELED]
        self.context = Context(step, total_steps, self.ema)
        self.new_images(size, dtype)

    def new_images(self, size=8, dtype=torch.float64):
        names = self.algorithm.views
        self.unlabeled = Unlabeled(
            self.index, {name: torch.randn(UNLABELED, 3, size, size, dtype=dtype) for name in names}
        )

    def terms(self, net=None):
        return self.algorithm.loss_terms(net or self.net, self.labeled, self.unlabeled, self.context)

    def lambda_terms(self):
        """As a Λ step asks for them."""
        training = self.net.training
        self.net.eval()
        with torch.no_grad():
            terms = self.terms()
        self.net.train(training)
        return terms

    def view(self, name):
        return self.unlabeled.views[name]


@pytest.fixture
def case():
    """Makes a :class:`Case`."""
    return Case
