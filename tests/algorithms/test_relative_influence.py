"""RelativeInfluence with every method: the own examples gain, whatever terms the method compares them in."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from discovered import METHODS
from torch import nn

from ssl_weighting.algorithms.base import Context, Labeled, Unlabeled, supervised_term
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.errors import UserError
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.survey import take_survey
from ssl_weighting.terms import Objective
from ssl_weighting.views import Views

MIXED = {"MixMatch"}
"""Methods whose terms hold no guess of an example's own class."""
COMPARING = [method for method in METHODS if method().views]

HEADS = {name: size for method in METHODS for name, size in method().extra_heads(5).items()}


@pytest.fixture(scope="module")
def trained():
    """Half of the pool is foreign; a network that knows its five classes well enough."""
    torch.manual_seed(0)
    data = Digits(num_labeled=50, num_validation=100, known_classes=[5, 6, 7, 8, 9], pool_classes=[0, 1, 2, 3, 4],
                  foreign_fraction=0.5, split_seed=0)  # fmt: skip
    data.setup("fit")
    network = Classifier(SmallConvNet(1, (16, 32)), 5, True, HEADS)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    labeled = data.sets["labeled"].__getitems__(range(50))
    for _ in range(60):
        loss = F.cross_entropy(network(data.view(labeled.inputs, ("weak",))).logits, labeled.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data, network.eval()


def influences(method, data, network):
    algorithm = method()
    torch.manual_seed(1)
    pool = data.sets["unlabeled"]
    algorithm.prepare(len(pool), 5)
    if algorithm.surveys:
        algorithm.survey(
            take_survey(network, Views(data, algorithm, nn.ModuleList(), 5), 0, torch.device("cpu"))
        )
    rows = torch.randperm(len(pool))[:128]
    batch, given, validation = (
        data.sets[part].__getitems__(list(which))
        for part, which in (("unlabeled", rows.tolist()), ("labeled", range(50)), ("validation", range(100)))
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        views = {name: data.view(batch.inputs, steps) for name, steps in algorithm.views.items()}
        labeled = Labeled(data.view(given.inputs, algorithm.labeled_view), F.one_hot(given.labels, 5).float())
        terms = algorithm.loss_terms(network, labeled, Unlabeled(rows, views), Context(200, 400, network))
        known = network(data.view(validation.inputs, ()))
        target = supervised_term(known, F.one_hot(validation.labels, 5).float())
        weights = [None if t.row is None else torch.ones(len(t.mask)) for t in terms]
        found = RelativeInfluence()(network, Objective(terms, weights), target)
    return torch.stack(found).sum(0), pool.labels[rows] < 5


@pytest.mark.parametrize(
    "method", [m for m in COMPARING if m.__name__ not in MIXED], ids=lambda m: m.__name__
)
def test_own_examples_gain(method, trained):
    score, own = influences(method, *trained)
    assert (score[own] > 0).double().mean() < 0.15, "own examples lose weight"
    assert score[~own].mean() > score[own].mean()


@pytest.mark.parametrize("method", [m for m in COMPARING if m.__name__ in MIXED], ids=lambda m: m.__name__)
def test_methods_without_a_guess_are_refused(method, trained):
    with pytest.raises(UserError, match="none of the method's loss terms compares examples to a guess"):
        influences(method, *trained)
