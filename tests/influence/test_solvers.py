"""Every solver against dense linear algebra in float64."""

import warnings
from dataclasses import replace

import pytest
import torch
from modules import Doubled

from lab.speed.timing import Options, set_up
from lab.speed.timing import terms as bench_terms
from ssl_weighting.errors import UserError
from ssl_weighting.influence import larsen
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.lissa import LiSSA
from ssl_weighting.influence.neumann import Neumann
from ssl_weighting.influence.scope import scope_parameters
from ssl_weighting.terms import Objective

KINDS = ["mlp", "conv", "transformer"]
SCOPES = ["last_layer", "last_block", "all"]


def _names(c, scope):
    return list(scope_parameters(c.network, scope))


def _eye(matrix):
    return torch.eye(len(matrix), dtype=torch.float64)


def _assert_close(influences, expected, tolerance):
    influences = torch.cat(influences)
    assert expected.abs().max() > 0
    assert (influences - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_identity(case, kind, scope):
    c = case(kind)
    g = c.validation_gradient(_names(c, scope))
    expected = c.influences(_names(c, scope), torch.eye(len(g), dtype=torch.float64))
    _assert_close(Identity(scope=scope)(c.network, c.objective, c.validation), expected, 1e-10)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_conjugate_gradient(case, kind, scope, curvature):
    c = case(kind)
    names = _names(c, scope)
    matrix = c.gauss_newton(names) if curvature == "ggn" else c.hessian(names)
    damping = 0.05 + max(0.0, -2 * float(torch.linalg.eigvalsh(matrix)[0]))
    solver = ConjugateGradient(400, 1e-12, damping=damping, curvature=curvature, scope=scope)
    expected = c.influences(names, matrix + damping * _eye(matrix))
    _assert_close(solver(c.network, c.objective, c.validation), expected, 1e-6)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_conjugate_gradient_on_the_last_layer_is_the_exact_solver(case, kind):
    c = case(kind)
    objective = Objective(c.objective.terms[:2], c.objective.weights[:2])
    exact = ExactLastLayer(0.01)(c.network, objective, c.validation)
    solver = ConjugateGradient(200, 1e-12, damping=0.01, scope="last_layer")
    _assert_close(solver(c.network, objective, c.validation), torch.cat(exact), 1e-6)


def test_conjugate_gradient_keeps_its_stated_tolerance(case):
    c = case("mlp")
    solver = ConjugateGradient(100, 1e-3, damping=0.01, scope="all")
    problem = solver.problem(c.network, c.objective, c.validation)
    g = problem.validation_gradient()
    residual = g - problem.operator("ggn", 0.01)(solver.solve(problem, g))
    assert 1e-9 < residual.norm() / g.norm() <= 1e-3


def test_conjugate_gradient_says_when_it_meets_negative_curvature(case):
    c = case("mlp")
    least = float(torch.linalg.eigvalsh(c.hessian(_names(c, "all")))[0])
    assert least < -1e-4
    solver = ConjugateGradient(200, 1e-12, damping=-least * 0.1, curvature="hessian", scope="all")
    with pytest.warns(RuntimeWarning, match="negative curvature"):
        influences = solver(c.network, c.objective, c.validation)
    assert all(torch.isfinite(i).all() for i in influences)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_neumann_is_the_truncated_series(case, kind, scope):
    c = case(kind)
    names = _names(c, scope)
    matrix = c.gauss_newton(names) + 0.1 * _eye(c.gauss_newton(names))
    step = 1 / float(torch.linalg.eigvalsh(matrix)[-1])
    series = step * sum(torch.linalg.matrix_power(_eye(matrix) - step * matrix, j) for j in range(6))
    solver = Neumann(5, step, damping=0.1, scope=scope)
    expected = c.influences(names, torch.linalg.inv(series))
    _assert_close(solver(c.network, c.objective, c.validation), expected, 1e-8)


def test_neumann_with_a_measured_step_converges_to_the_inverse(case):
    c = case("conv")
    names = _names(c, "last_block")
    matrix = c.gauss_newton(names)
    expected = c.influences(names, matrix + 0.5 * _eye(matrix))
    solver = Neumann(60, damping=0.5, scope="last_block")
    _assert_close(solver(c.network, c.objective, c.validation), expected, 1e-3)


def test_neumann_names_the_mend_where_it_diverges(case):
    c = case("mlp")
    names = _names(c, "all")
    top = float(torch.linalg.eigvalsh(c.gauss_newton(names))[-1])
    with pytest.raises(UserError, match=r"influence\.step_size=.*below 2/λ_max"):
        Neumann(50, 4 / top, scope="all")(c.network, c.objective, c.validation)
    with pytest.raises(UserError, match=r"influence\.curvature='hessian'.*negative curvature.*ggn"):
        Neumann(5000, 1 / top, damping=0.0, curvature="hessian", scope="all")(
            c.network, c.objective, c.validation
        )


def test_lissa_with_the_whole_batch_is_the_neumann_series(case):
    c = case("mlp")
    scale = 2 * float(torch.linalg.eigvalsh(c.gauss_newton(_names(c, "all")))[-1])
    lissa = LiSSA(7, 1000, scale, damping=0.05, scope="all")(c.network, c.objective, c.validation)
    neumann = Neumann(7, 1 / scale, damping=0.05, scope="all")(c.network, c.objective, c.validation)
    _assert_close(lissa, torch.cat(neumann), 1e-10)


def test_lissa_on_minibatches_is_right_in_the_mean(case):
    c = case("mlp")
    names = _names(c, "last_layer")
    matrix = c.gauss_newton(names)
    expected = c.influences(names, matrix + 0.5 * _eye(matrix))
    torch.manual_seed(0)
    scale = 4 * float(torch.linalg.eigvalsh(matrix)[-1])
    solver = LiSSA(60, 6, scale, repeats=30, damping=0.5, scope="last_layer")
    _assert_close(solver(c.network, c.objective, c.validation), expected, 0.05)


def test_lissa_names_the_mend_where_it_diverges(case):
    c = case("mlp")
    with pytest.raises(UserError, match=r"influence\.scale=0\.001.*raise scale"):
        LiSSA(50, 4, 0.001, scope="all")(c.network, c.objective, c.validation)


def test_lissa_doubles_its_own_scale_until_it_converges(case):
    c = case("mlp")
    weights = [None if w is None else w.index_fill(0, torch.tensor([0]), 100) for w in c.objective.weights]
    objective, scales = Objective(c.objective.terms, weights), []  # one example outweighs all others
    torch.manual_seed(0)
    solver = LiSSA(60, 1, scope="all")
    run = solver._run
    solver._run = lambda *given: (scales.append(given[-1]), run(*given))[1]
    found = solver(c.network, objective, c.validation)
    assert scales == [scales[0] * 2**i for i in range(len(scales))]
    assert len(scales) > 1
    assert torch.cat(found).isfinite().all()
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"influence\.scale=.*raise scale"):
        LiSSA(60, 1, scales[0], scope="all")(c.network, objective, c.validation)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_larsen_rank_one(case, kind, scope):
    c = case(kind)
    names = _names(c, scope)
    g = torch.func.grad(lambda t: c.loss(names, t, c.objective))(c.flat(names)[1])
    matrix = torch.outer(g, g) + 0.02 * torch.eye(len(g), dtype=torch.float64)
    solver = Larsen("batch", 0.02, scope=scope)
    _assert_close(solver(c.network, c.objective, c.validation), c.influences(names, matrix), 1e-6)


def _fisher(c, names):
    """Σ w ∇ℓ ∇ℓᵀ, (P, P)."""
    size = len(c.flat(names)[1])
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for term, weights in zip(c.objective.terms, c.objective.weights, strict=True):
        gradients = c.gradients(names, term) / term.scale
        w = term.scale * term.mask * (1 if weights is None else weights) / len(gradients)
        matrix += gradients.T @ (w[:, None] * gradients)
    return matrix


@pytest.mark.parametrize("damping", [0.02, 5e-4])
@pytest.mark.parametrize("scope", [*SCOPES, "weight$"])
@pytest.mark.parametrize("kind", KINDS)
def test_larsen_fisher(case, kind, scope, damping):
    c = case(kind)
    names = _names(c, scope)
    matrix = _fisher(c, names)
    expected = c.influences(names, matrix + damping * _eye(matrix))
    solver = Larsen("fisher", damping, scope=scope)
    _assert_close(solver(c.network, c.objective, c.validation), expected, 1e-8)


def test_larsen_fisher_with_most_examples_masked(case):
    c = case("conv")
    terms = [replace(t, mask=t.mask * (torch.arange(len(t.mask)) == 1)) for t in c.objective.terms]
    c.objective = Objective(terms, c.objective.weights)
    names = _names(c, "all")
    matrix = _fisher(c, names)
    expected = c.influences(names, matrix + 5e-4 * _eye(matrix))
    influences = Larsen("fisher", scope="all")(c.network, c.objective, c.validation)
    assert (influences[0].abs() > 0).all()
    _assert_close(influences, expected, 1e-8)


@pytest.mark.parametrize("scope", SCOPES)
def test_larsen_fisher_solves_the_system(case, scope):
    c = case("conv")
    names = _names(c, scope)
    solver = Larsen("fisher", scope=scope)
    problem = solver.problem(c.network, c.objective, c.validation)
    g = problem.validation_gradient()
    v = solver.solve(problem, g)
    assert (_fisher(c, names) @ v + 5e-4 * v - g).norm() <= 1e-9 * g.norm()


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_larsen_fisher_in_blocks_recomputes_nothing_wrong(case, monkeypatch, chunk_size):
    c = case("conv")
    whole = Larsen("fisher", scope="all")(c.network, c.objective, c.validation)
    size = len(c.flat()[1])
    monkeypatch.setattr(larsen, "KEPT_BYTES", 8 * size * 4)  # four rows
    monkeypatch.setattr(larsen, "COLUMNS", 50)
    solver = Larsen("fisher", scope="all", chunk_size=chunk_size)
    _assert_close(solver(c.network, c.objective, c.validation), torch.cat(whole), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_larsen_fisher_one_by_one(case, kind):
    c = case(kind)
    vectorised = Larsen("fisher", scope="all")(c.network, c.objective, c.validation)
    serial = Larsen("fisher", scope="all", engine="serial")(c.network, c.objective, c.validation)
    _assert_close(serial, torch.cat(vectorised), 1e-8)


def test_larsen_fisher_falls_back_where_vmap_fails(case):
    c = case("mlp")
    expected = Larsen("fisher", scope="last_layer")(c.network, c.objective, c.validation)
    doubled = c.network.heads["classifier"].register_forward_hook(lambda m, i, o: Doubled.apply(o / 2))
    influences = Larsen("fisher", scope="last_layer")(c.network, c.objective, c.validation)
    doubled.remove()
    _assert_close(influences, torch.cat(expected), 1e-10)


@pytest.mark.parametrize("scope", SCOPES)
def test_larsen_fisher_in_float32(scope):
    options = Options("wrn-10-1", 16, 24, 16)
    single, double = set_up(options), set_up(options, torch.float64)
    solver = Larsen("fisher", 5e-4, scope=scope)
    value = solver(single.network, *bench_terms(single))
    assert value[0].dtype == torch.float32
    _assert_close([v.double() for v in value], torch.cat(solver(double.network, *bench_terms(double))), 1e-2)


def test_larsen_fisher_says_when_the_damping_is_lost_in_rounding(case):
    c = case("mlp")
    with pytest.raises(UserError, match=r"influence\.damping=1e-25.*raise the damping"):
        Larsen("fisher", 1e-25)(c.network, c.objective, c.validation)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Neumann(terms=0), r"influence\.terms=0: must be above 0"),
        (lambda: Neumann(step_size=-1.0), r"influence\.step_size=-1"),
        (
            lambda: ExactLastLayer(damping="papr"),
            r"model\.influence\.damping=papr: must be at least 0, or 'paper'",
        ),
        (lambda: ConjugateGradient(damping=-1.0), r"influence\.damping=-1"),
        (lambda: ConjugateGradient(curvature="fisher"), r"influence\.curvature='fisher'.*ggn"),
        (lambda: LiSSA(batch_size=0), r"influence\.batch_size=0"),
        (lambda: Larsen("rank", 0.1), r"influence\.outer_product='rank'"),
        (lambda: Larsen(damping=0.0), r"influence\.damping=0"),
        (lambda: Identity(scope="("), r"influence\.scope='\('"),
        (lambda: Identity(chunk_size=-1), r"influence\.chunk_size=-1"),
    ],
)
def test_bad_arguments_name_key_value_and_mend(make, key):
    with pytest.raises(UserError, match=key):
        make()


def test_a_scope_that_matches_nothing_shows_names(case):
    c = case("mlp")
    with pytest.raises(UserError, match=r"influence\.scope='banana'.*heads\.classifier"):
        Identity(scope="banana")(c.network, c.objective, c.validation)


def test_no_warning_on_well_behaved_problems(case):
    c = case("conv")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ConjugateGradient(scope="last_block")(c.network, c.objective, c.validation)
