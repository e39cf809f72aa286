"""What every influence promises; the solvers are discovered, so that a new one is tested as it is added."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import ssl_weighting.influence as package
from ssl_weighting.errors import NonFiniteError
from ssl_weighting.influence import Influence, ThetaStep
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.lissa import LiSSA
from ssl_weighting.influence.neumann import Neumann
from ssl_weighting.influence.scoped import ScopedInfluence


def _solvers():
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        for kind in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if inspect.isclass(kind) and issubclass(kind, Influence) and not inspect.isabstract(kind):
                found[kind.__name__] = kind
    return found


SOLVERS = _solvers()


def _variants():
    for name, kind in SOLVERS.items():
        if issubclass(kind, ScopedInfluence):
            for scope in ("last_layer", "last_block", "all", "weight$"):
                yield pytest.param(kind, {"scope": scope}, id=f"{name}-{scope}")
        else:
            yield pytest.param(kind, {}, id=name)


def _recorded(solver, c):
    for _ in range(solver.records_steps):
        parameters = {n: p.detach().clone() for n, p in c.network.named_parameters()}
        solver.record_step(ThetaStep(parameters, c.objective, 0.1, 0.9, 5e-4, True))
    return solver


@pytest.mark.parametrize(("solver", "options"), list(_variants()))
@pytest.mark.parametrize("where", ["validation", "unlabelled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_called_so(case, solver, options, where, value):
    """And not a Hessian that cannot be inverted: a run that skips bad steps goes on."""
    c = case("mlp")
    influence = _recorded(solver(**options), c)
    term = c.validation if where == "validation" else c.objective.terms[1]
    for tensor in (term.features, term.logits):
        tensor.data[0, 0] = value
    with pytest.raises(NonFiniteError, match=rf"model\.influence={solver.__name__}: .* is not finite"):
        influence(c.network, c.objective, c.validation)


@pytest.mark.parametrize(
    "solver",
    [
        ConjugateGradient(max_iterations=400, tolerance=1e-13, damping=0.3),
        Neumann(terms=4000, damping=0.3),
        Larsen("fisher", damping=0.3),
        Larsen("batch", damping=0.3),
        LiSSA(depth=4000, batch_size=1000, damping=0.3),
    ],
    ids=lambda s: type(s).__name__,
)
def test_damping_means_the_same_for_one_output_as_for_two(case, solver):
    """A head with one output w and logits (f, −f) has the damping of the logits' weights (w, −w)."""
    c = case("mlp", binary=True)
    head = c.network.heads["classifier"]
    names = [n for n, p in c.network.named_parameters() if p is head.weight or p is head.bias]
    _, theta = c.flat(names)
    if isinstance(solver, Larsen):
        rows = torch.cat(
            [c.gradients(names, t) / t.scale for t in c.objective.terms if t.head == "classifier"]
        )
        w = torch.cat(
            [
                t.scale * t.mask * (1.0 if v is None else v) / len(t.mask)
                for t, v in zip(c.objective.terms, c.objective.weights, strict=True)
                if t.head == "classifier"
            ]
        )
        total = (w[:, None] * rows).sum(0)
        matrix = (
            torch.outer(total, total) if solver.outer_product == "batch" else rows.T @ (w[:, None] * rows)
        )
    else:
        matrix = c.gauss_newton(names)
    expected = c.influences(names, matrix + 2 * 0.3 * torch.eye(len(theta), dtype=torch.float64))
    found = torch.cat(solver(c.network, c.objective, c.validation))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_family_is_complete():
    expected = {
        "ExactLastLayer",
        "Identity",
        "Neumann",
        "ConjugateGradient",
        "LiSSA",
        "Larsen",
        "TruncatedUnroll",
    }
    assert expected <= SOLVERS.keys()


@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize(("solver", "options"), list(_variants()))
def test_contract(case, solver, options, kind):
    c = case(kind)
    c.network.train()
    before = {n: t.clone() for n, t in c.network.state_dict().items()}
    torch.manual_seed(0)
    with torch.no_grad():
        influences = _recorded(solver(**options), c)(c.network, c.objective, c.validation)
    indexed = [t for t in c.objective.terms if t.row is not None]
    assert [i.shape for i in influences] == [t.mask.shape for t in indexed]
    assert all(
        i.dtype == torch.float64 and torch.isfinite(i).all() and not i.requires_grad for i in influences
    )
    assert influences[0].abs().max() > 0
    assert all(module.training for module in c.network.modules())
    assert all(p.requires_grad and p.grad is None for p in c.network.parameters())
    assert all(torch.equal(t, before[n]) for n, t in c.network.state_dict().items())


@pytest.mark.parametrize(("solver", "options"), list(_variants()))
def test_masked_examples_have_influence_but_no_curvature(case, solver, options):
    """ℓ_u is unmasked; and what is masked plays no part in the Hessian."""
    c = case("mlp")
    torch.manual_seed(0)
    influences = _recorded(solver(**options), c)(c.network, c.objective, c.validation)
    masked = c.objective.terms[1].mask == 0
    assert masked.any()
    assert (influences[0][masked].abs() > 0).all()


@pytest.mark.parametrize(
    "name", [n for n, kind in SOLVERS.items() if "curvature" in inspect.signature(kind).parameters]
)
def test_curvature_is_an_option(case, name):
    c = case("mlp")
    solver = SOLVERS[name](curvature="hessian", scope="all")
    if hasattr(solver, "damping"):
        solver.damping = 1.0
    assert all(torch.isfinite(i).all() for i in _recorded(solver, c)(c.network, c.objective, c.validation))


@pytest.mark.parametrize(("solver", "options"), list(_variants()))
def test_bfloat16_features_of_autocast_are_taken(case, solver, options):
    c = case("mlp")
    c.network.float()
    cast = lambda t: type(t)(  # noqa: E731
        t.name,
        t.inputs.float(),
        t.features.bfloat16(),
        t.logits.bfloat16(),
        t.target.float(),
        t.distance,
        t.mask.float(),
        t.row,
        t.head,
        t.scale,
        anchor=None if t.anchor is None else t.anchor.bfloat16(),
    )
    weights = [None if w is None else w.float() for w in c.objective.weights]
    c.objective = type(c.objective)([cast(t) for t in c.objective.terms], weights)
    c.validation = cast(c.validation)
    with torch.autocast("cpu", torch.bfloat16):
        influences = _recorded(solver(**options), c)(c.network, c.objective, c.validation)
    assert all(i.dtype in (torch.float32, torch.float64) and torch.isfinite(i).all() for i in influences)
