import numpy as np
import pytest
import torch

from ssl_weighting.errors import UserError
from ssl_weighting.influence.relative import RelativeInfluence


def by_hand(case, neighbours, quantile, damping):
    """The definition, a pair at a time, from explicit gradients of a squared-error head at the uniform prediction."""
    term = case.objective.terms[1]
    x_u, q_u = term.features.detach().numpy(), term.target.numpy()
    x_v, y_v = case.validation.features.detach().numpy(), case.validation.target.numpy()
    seen = np.concatenate([x_v, x_u, case.objective.terms[2].features.detach().numpy()])
    mean = seen.mean(0)
    covariance = np.cov(seen.T, bias=True)
    covariance += damping * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    classes = y_v.shape[1]
    inverse = np.kron(np.eye(classes), np.linalg.inv(covariance))

    def relative(x, q, x2, q2):
        g, g2 = np.kron(1 / classes - q, x - mean), np.kron(1 / classes - q2, x2 - mean)
        return g @ inverse @ g2 / np.sqrt((g @ inverse @ g) * (g2 @ inverse @ g2))

    def score(x, q, others):
        return np.mean(sorted(relative(x, q, x_v[j], y_v[j]) for j in others)[-neighbours:])

    everyone = range(len(x_v))
    reference = [score(x_v[i], y_v[i], [j for j in everyone if j != i]) for i in everyone]
    least, spread = np.quantile(reference, quantile), np.std(reference, ddof=1)
    return [(least - score(x, q, everyone)) / spread for x, q in zip(x_u, q_u, strict=True)]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_agrees_with_the_definition_pair_by_pair(case, kind):
    c = case(kind)
    found, *_ = RelativeInfluence(2, 0.2, 0.05)(c.network, c.objective, c.validation)
    np.testing.assert_allclose(found.numpy(), by_hand(c, 2, 0.2, 0.05), rtol=1e-6, atol=1e-9)


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


def test_features_that_are_not_finite_give_no_finite_influence(case):
    """The loop then stops in one line, or skips the step, as for every influence."""
    c = case("mlp")
    c.validation.features.data[0, 0] = torch.nan
    (influence, *_) = RelativeInfluence()(c.network, c.objective, c.validation)
    assert not influence.isfinite().any()
