import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective


def with_classes(c, labels, guesses):
    """The case with one-hot labels in V' and one-hot guesses of the unlabelled examples."""
    classes = c.validation.target.shape[1]
    hot = lambda numbers: torch.nn.functional.one_hot(torch.tensor(numbers), classes).double()  # noqa: E731
    c.validation = replace(c.validation, target=hot(labels))
    terms = [c.objective.terms[0], replace(c.objective.terms[1], target=hot(guesses)), *c.objective.terms[2:]]
    c.objective = type(c.objective)(terms, c.objective.weights)
    return c


def by_hand(case, neighbours, quantile, damping):
    """The definition, a pair at a time, from explicit gradients of a squared-error head at the uniform prediction."""
    term = case.objective.terms[1]
    x_u, q_u = term.anchor.detach().numpy(), term.target.numpy()
    x_v, y_v = case.validation.features.detach().numpy(), case.validation.target.numpy()
    seen = np.concatenate([x_v, x_u])
    mean = seen.mean(0)
    covariance = np.cov(seen.T, bias=True)
    covariance += damping * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    classes = y_v.shape[1]
    inverse = np.kron(np.eye(classes), np.linalg.inv(covariance))
    members = {c: [j for j in range(len(x_v)) if y_v[j].argmax() == c] for c in range(classes)}

    def relative(x, q, x2, q2):
        g, g2 = np.kron(1 / classes - q, x - mean), np.kron(1 / classes - q2, x2 - mean)
        return g @ inverse @ g2 / np.sqrt((g @ inverse @ g) * (g2 @ inverse @ g2))

    def score(x, q, others, k):
        return np.mean(sorted(relative(x, q, x_v[j], y_v[j]) for j in others)[-k:])

    def by_as_many(i, n):
        """An example's score by the n that follow it in its class."""
        mine = members[y_v[i].argmax()]
        at = mine.index(i)
        others = (mine[at + 1 :] + mine[:at])[:n]
        k = max(1, min(neighbours, len(mine) - 1, n - 1))
        return score(x_v[i], y_v[i], others, min(k, len(others)))

    several = [i for i in range(len(x_v)) if len(members[y_v[i].argmax()]) > 1]
    spread = np.std([by_as_many(i, len(x_v)) for i in several], ddof=1)
    least = {}
    for c, mine in members.items():
        if mine:
            n = len(mine)
            alike = np.quantile([by_as_many(i, n) for i in several], quantile)
            own = np.quantile([by_as_many(i, len(x_v)) for i in mine], quantile) if n > 1 else alike
            least[c] = alike + n / (n + 1 / quantile) * (own - alike)
    found = []
    for x, q in zip(x_u, q_u, strict=True):
        c = q.argmax()
        k = max(1, min(neighbours, len(members[c]) - 1))
        found.append((least[c] - score(x, q, members[c], k)) / spread if members[c] else 0.0)
    return found


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize("neighbours", [1, 2, 5])
@pytest.mark.filterwarnings("ignore:model.influence=RelativeInfluence")
def test_agrees_with_the_definition_pair_by_pair(case, labels, neighbours):
    c = with_classes(case("mlp"), labels, [0, 1, 2, 0, 1, 0, 1])
    found, other, rotation = RelativeInfluence(neighbours, 0.2, 0.05)(c.network, c.objective, c.validation)
    np.testing.assert_allclose(found.numpy(), by_hand(c, neighbours, 0.2, 0.05), rtol=1e-6, atol=1e-9)
    assert not other.any(), "an example has one score"
    assert not rotation.any()


def test_a_class_that_is_not_validated_keeps_its_weights_and_is_named(case):
    c = with_classes(case("mlp"), [0, 0, 1, 1, 0, 1], [2] * 7)
    solver = RelativeInfluence()
    with pytest.warns(DataWarning, match="too few validation examples of class 2"):
        (found, *_) = solver(c.network, c.objective, c.validation)
    assert not found.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver(c.network, c.objective, c.validation)  # said once


def test_labels_that_train_and_are_too_few_are_called_so(case):
    c = with_classes(case("mlp"), [0, 0, 1, 1, 0, 1], [2] * 7)
    own = Objective([c.validation, *c.objective.terms], [None, *c.objective.weights])
    with pytest.warns(DataWarning, match="too few labelled examples of class 2 .* label more of it"):
        RelativeInfluence()(c.network, own, c.validation)


def rare(number, seed, classes=5, size=64, validation=123, pool=300):
    """Share of right examples that lose weight, of a class with so many validation examples, and of the others."""
    draw = torch.Generator().manual_seed(seed)
    centres = 4 * torch.nn.functional.normalize(torch.randn(classes, size, generator=draw), dim=1)
    y_v = torch.cat([torch.zeros(number).long(), 1 + torch.arange(validation - number) % (classes - 1)])
    y_u = torch.cat([torch.zeros(30).long(), 1 + torch.arange(pool - 30) % (classes - 1)])

    def term(name, y, **more):
        x = centres[y] + 0.5 * torch.randn(len(y), size, generator=draw)
        target = torch.nn.functional.one_hot(y, classes).double()
        return LossTerm(
            name, None, x, 0 * target, target, CROSS_ENTROPY, torch.ones(len(y)), **more, anchor=x
        )

    u, v = term("u", y_u, row=torch.arange(pool)), term("v", y_v)
    (found,) = RelativeInfluence()(None, Objective([u], [None]), v)
    loses = (found > 0).double()
    return float(loses[y_u == 0].mean()), float(loses[y_u > 0].mean())


@pytest.mark.parametrize("number", [2, 3, 8, 30])
def test_rare_classes_do_not_starve(number):
    shares = np.mean([rare(number, seed) for seed in range(5)], 0)
    assert (shares < 0.1).all(), shares


def test_terms_without_a_guess_are_left_out_or_refused(case):
    c = case("mlp")
    terms = [replace(t, anchor=None) for t in c.objective.terms]
    with pytest.raises(UserError, match="compares examples to a guess of their own class"):
        RelativeInfluence()(c.network, type(c.objective)(terms, c.objective.weights), c.validation)


def clusters(case, pseudo):
    """Two tight classes in V'; unlabelled examples of both classes and, last, one far from both."""
    c = case("mlp")
    term, validation = c.objective.terms[1], c.validation
    classes = validation.target.shape[1]
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(term.features.shape[1], dtype=torch.float64)[:3] * 5

    def around(kinds):
        noise = torch.randn(len(kinds), centres.shape[1], generator=generator, dtype=torch.float64)
        return centres[torch.tensor(kinds)] + 0.1 * noise

    def replaced(old, features, labels):
        target = torch.nn.functional.one_hot(torch.tensor(labels), classes).double()
        keep = dict(vars(old)) | {
            "features": features,
            "anchor": features,
            "target": target,
            "logits": target,
            "mask": target[:, 0] * 0 + 1,
        }
        return type(old)(**keep)

    kinds = [0, 1] * 10
    c.validation = replaced(validation, around(kinds), kinds)
    new = replaced(term, around([0, 1, 0, 2]), pseudo)
    c.objective = type(c.objective)([c.objective.terms[0], new], c.objective.weights)
    return RelativeInfluence(3)(c.network, c.objective, c.validation)[0]


def test_foreign_examples_and_wrong_pseudo_labels_harm(case):
    right, also_right, wrong, foreign = clusters(case, [0, 1, 1, 0]).tolist()
    assert max(right, also_right) < min(wrong, foreign)
    assert wrong > 0
    assert foreign > 0


@pytest.mark.parametrize(
    "bad",
    [{"neighbours": 0}, {"quantile": 0.0}, {"quantile": 1.0}, {"damping": 0.0}, {"damping": float("nan")}],
)
def test_options_out_of_range_are_refused_by_name(bad):
    with pytest.raises(UserError, match=f"model.influence.{next(iter(bad))}="):
        RelativeInfluence(**bad)


def test_too_few_validation_examples_are_refused(case):
    c = case("mlp")
    term = c.validation
    few = {n: v[:2] if isinstance(v, torch.Tensor) else v for n, v in vars(term).items()}
    with pytest.raises(UserError, match="validation_batch_size"):
        RelativeInfluence()(c.network, c.objective, type(term)(**few))
