"""Influences, every inverse Hessian side by side (Section 4.4, second part; Table A1).

A row's time is a whole Λ step's: the loss terms on (D', U') and V' evaluated without a graph, and the
influences from them. The reference is one batch forward and backward of D' and U', the heart of a θ step.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lab.speed.comparison import compare, references
from lab.speed.timing import Call, Options, Row, Setup, forward_backward, parse, relative_error, set_up, terms
from ssl_weighting.influence import ExactLastLayer, Influence, ThetaStep
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.curvature import CurvatureOperator
from ssl_weighting.influence.evaluation import batches_of, plain_evaluation
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.lissa import LiSSA
from ssl_weighting.influence.neumann import Neumann
from ssl_weighting.influence.scope import scope_parameters
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.protocols import Network

SOLVERS: dict[str, Callable[[str], Influence]] = {
    "exact": lambda scope: ExactLastLayer(),
    "identity": lambda scope: Identity(scope=scope),
    "larsen, rank one": lambda scope: Larsen(scope=scope),
    "larsen, Fisher": lambda scope: Larsen("fisher", scope=scope),
    "neumann (20 terms)": lambda scope: Neumann(20, scope=scope),
    "conjugate gradient (20)": lambda scope: ConjugateGradient(20, scope=scope),
    "lissa (20 of 64)": lambda scope: LiSSA(20, 64, scope=scope),
    "truncated unroll (3)": lambda scope: TruncatedUnroll(3, scope=scope),
}
ROWS = [
    ("exact", "last_layer"),
    *((name, "last_layer") for name in SOLVERS if name != "exact"),
    *((name, "last_block") for name in SOLVERS if name != "exact"),
    ("identity", "all"),
    ("larsen, rank one", "all"),
    ("truncated unroll (3)", "all"),
]


def main(argv: list[str]) -> int:
    """Run ``python -m lab bench influence`` with its options. Returns the exit status."""
    run(
        parse(
            "python -m lab bench influence",
            "A whole weight step with every solver and scope, side by side.",
            argv,
        )
    )
    return 0


def run(options: Options) -> list[Row]:
    """See :func:`~lab.speed.comparison.compare`."""
    sizes = f"{options.labeled}/{options.unlabeled}/{options.validation}"
    title = f"Influence: {options.network}, a whole weight step with {sizes}"
    return compare(options, make_calls, _errors, title, ["curvlinops"])


def make_calls(options: Options) -> Mapping[str, Callable[[], Call]]:
    """What is measured, by name: the references, the solvers over their scopes, and one curvature product."""
    images = options.network.startswith("wrn")
    builders = references(options, _reference)
    for name, scope in ROWS:
        builders[f"{name} | {scope}"] = partial(_row, options, name, scope)
    if images:
        builders["one Gauss-Newton product | last_block"] = partial(_product, options)
        if importlib.util.find_spec("curvlinops") is not None:
            builders["curvlinops: one Gauss-Newton product | last_block"] = partial(_curvlinops, options)
    return builders


def _reference(options: Options, channels_last: bool) -> Call:
    setup = set_up(options, channels_last=channels_last)
    together = pytree.tree_map(lambda *parts: torch.cat(parts), setup.labeled, setup.unlabeled)
    return partial(forward_backward, setup.network, together)


def _row(options: Options, name: str, scope: str) -> Call:
    setup = set_up(options)
    return partial(_weight_step, _solver(name, scope, setup), setup)


def _solver(name: str, scope: str, setup: Setup) -> Influence:
    solver = SOLVERS[name](scope)
    if solver.records_steps:
        objective, _ = terms(setup)
        parameters = {n: p.detach().clone() for n, p in setup.network.named_parameters()}
        for _ in range(solver.records_steps):
            solver.record_step(ThetaStep(parameters, objective, 0.03, 0.9, 5e-4, True))
    return solver


def _weight_step(solver: Influence, setup: Setup) -> Tensor:
    torch.manual_seed(0)  # LiSSA's minibatches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return solver(cast(Network, setup.network), *terms(setup))[0]


def _errors(options: Options) -> dict[str, float]:
    """Float32's influences against the same solver's in float64, on small batches."""
    n = options.float64_examples
    few = replace(options, labeled=n, unlabeled=n, validation=n)
    single, double = set_up(few), set_up(few, torch.float64)
    errors = {}
    for name, scope in ROWS:
        truth = _weight_step(_solver(name, scope, double), double)
        value = _weight_step(_solver(name, scope, single), single)
        errors[f"{name} | {scope}"] = relative_error(value, truth)
    return errors


def _product(options: Options) -> Call:
    setup = set_up(options)
    objective, _ = terms(setup)
    parameters = scope_parameters(setup.network, "last_block")
    vector = torch.ones(sum(p.numel() for p in parameters.values()), device=_device(setup))

    def call() -> Tensor:
        with plain_evaluation(setup.network):
            batches = batches_of(objective, vector.dtype)
            return CurvatureOperator(setup.network, parameters, batches, "ggn", 0.0)(vector)

    return call


def _curvlinops(options: Options) -> Call:
    from curvlinops import GGNLinearOperator  # type: ignore[import-not-found, import-untyped]

    setup = set_up(options)
    network = nn.Sequential(setup.network.backbone, setup.network.heads["classifier"])
    names = scope_parameters(setup.network, "last_block")
    parameters = [p for n, p in setup.network.named_parameters() if n in names]
    images = torch.cat((setup.labeled, setup.unlabeled))
    labels = torch.arange(len(images), device=images.device) % 10
    operator = GGNLinearOperator(
        network, nn.CrossEntropyLoss(), parameters, [(images, labels)], check_deterministic=False
    )
    vector = torch.ones(sum(p.numel() for p in parameters), device=_device(setup))
    return lambda: operator @ vector


def _device(setup: Setup) -> torch.device:
    return next(setup.network.parameters()).device
