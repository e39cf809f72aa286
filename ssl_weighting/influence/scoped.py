"""What influences over a scope of parameters share: solve v = H⁻¹∇L(V') once, then ∇ℓ_uᵀ v for every u."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.errors import UserError
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.curvature import CurvatureOperator, unflatten
from ssl_weighting.influence.evaluation import HeadsOnly, batches_of, of_features, plain_evaluation
from ssl_weighting.influence.finite import check_given, check_influences
from ssl_weighting.influence.products import Engine, per_example_products
from ssl_weighting.influence.scope import check_scope, scope_parameters
from ssl_weighting.protocols import Network
from ssl_weighting.terms import LossTerm, Objective


@dataclass(frozen=True)
class Problem:
    """One Λ step's linear algebra over a scope: what a solver may ask for.

    Attributes:
        network: A function of the terms' inputs: the classifier, or its heads alone for the last layer.
        parameters: θ in scope.
        objective: The training loss, its terms' inputs being what ``network`` takes.
        validation: The supervised loss on V', likewise.
        engine: For :meth:`products`.
        products_chunk: Examples at a time in :meth:`products`; 0 is automatic.
        curvature_chunk: Examples at a time in :meth:`operator`; 0 is all at once.
    """

    network: nn.Module
    parameters: Mapping[str, Tensor]
    objective: Objective
    validation: LossTerm
    engine: str
    products_chunk: int
    curvature_chunk: int

    @property
    def dtype(self) -> torch.dtype:
        """Of θ, in which everything is computed."""
        return next(iter(self.parameters.values())).dtype

    def validation_gradient(self) -> Tensor:
        """G = ∇L(V'), (P,)."""
        return self.operator_of(Objective([self.validation], [None]), "ggn", 0.0).gradient()

    def operator(self, curvature: str, damping: float) -> CurvatureOperator:
        """H + δ of the training loss, in the metric of :meth:`metric`."""
        return self.operator_of(self.objective, curvature, damping * self.metric())

    def metric(self) -> Tensor:
        """What the unit of damping is worth for each parameter, (P,): 2 for a head whose one output makes two logits.

        Such a head's weight w stands for the logits' weights (w, −w), so that δ |(w, −w)|² = 2δ |w|²: δ then means the
        same for both kinds of head, as in :class:`~ssl_weighting.influence.exact.ExactLastLayer`.
        """
        worth = dict.fromkeys(self.parameters, 1.0)
        for path, module in self.network.named_modules():
            basis = getattr(module, "basis", None)
            if isinstance(basis, Tensor) and isinstance(getattr(module, "weight", None), Tensor):
                own = {f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
                worth |= {name: float(basis.square().sum()) for name in own & {*worth}}
        if all(value == 1.0 for value in worth.values()):
            return next(iter(self.parameters.values())).new_ones(())
        return torch.cat([p.new_full((p.numel(),), worth[name]) for name, p in self.parameters.items()])

    def operator_of(
        self,
        objective: Objective,
        curvature: str,
        damping: float | Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> CurvatureOperator:
        """H + δ of any objective, at any θ."""
        batches = batches_of(objective, self.dtype)
        return CurvatureOperator(
            self.network, parameters or self.parameters, batches, curvature, damping, self.curvature_chunk
        )

    def products(
        self,
        terms: Sequence[LossTerm],
        vector: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """∇ℓ_uᵀ v of every example of some terms, for v (P,)."""
        return per_example_products(
            self.network,
            parameters or self.parameters,
            terms,
            unflatten(vector, self.parameters),
            self.engine,
            self.products_chunk,
        )


class ScopedInfluence(Influence):
    """Influences through an approximate H⁻¹ over a scope of parameters.

    The network is in evaluation mode meanwhile (BatchNorm's running statistics, no dropout) and autocast is
    off, whatever they are outside; targets and masks are those of the terms, and constants.

    Args:
        scope: Which parameters count as trainable: ``last_layer``, ``last_block``, ``all``, or a regular
            expression that is searched for in the parameters' names. For the last layer the terms' features
            are used and the backbone is not run.
        engine: How ∇ℓ_uᵀ v is computed for every example: ``auto``, ``jvp``, ``activation``, ``vmap``,
            ``serial``.
        chunk_size: Examples at a time, which bounds the memory. 0: for the products 32 on a CPU and 256 else;
            for the curvature of the whole network 64, and of anything less the whole batch at once, whose
            graph then serves all iterations.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(self, scope: str = "last_layer", engine: Engine = "auto", chunk_size: int = 0) -> None:
        self.scope, self.engine = (
            check_scope(scope),
            checks.one_of("model.influence.engine", engine, get_args(Engine)),
        )
        if chunk_size < 0:
            raise UserError(
                f"model.influence.chunk_size={chunk_size}: must be at least 1, or 0 for automatic"
            )
        self.chunk_size = chunk_size

    @abstractmethod
    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """V = H⁻¹ g.

        Args:
            problem: What there is to invert.
            gradient: g = ∇L(V'), (P,), flattened over the scope.

        Returns:
            v, (P,).

        Raises:
            UnsolvedError: If there is no such v; says what to do.
        """

    def problem(self, network: Network, objective: Objective, validation: LossTerm) -> Problem:
        """The linear algebra of one Λ step; see :class:`Problem`."""
        module = cast(nn.Module, network)
        if self.scope == "last_layer":
            module = HeadsOnly(module)
        parameters = scope_parameters(module, self.scope, validation.head)
        if self.scope == "last_layer":
            dtype = next(iter(parameters.values())).dtype
            joined: dict[int, LossTerm] = {id(t): of_features(t, dtype) for t in objective.terms}
            objective = Objective([joined[id(t)] for t in objective.terms], objective.weights)
            validation = of_features(validation, dtype)
        whole = self.scope not in ("last_layer", "last_block")
        return Problem(
            module,
            parameters,
            objective,
            validation,
            self.engine,
            self.chunk_size,
            self.chunk_size or (64 if whole else 0),
        )

    def evaluate(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """−∇ℓ_uᵀ H⁻¹ g of every unlabelled example, term by term. Called within ``plain_evaluation``."""
        problem = self.problem(network, objective, validation)
        solution = self.solve(problem, problem.validation_gradient())
        indexed = [term for term in problem.objective.terms if term.row is not None]
        return [-product for product in problem.products(indexed, solution)]

    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        check_given(self, objective, validation)
        with plain_evaluation(cast(nn.Module, network)):
            influences = self.evaluate(network, objective, validation)
        check_influences(self, influences)
        return influences


class DampedInfluence(ScopedInfluence):
    """Influences by products with a damped curvature, H + δ.

    Args:
        damping: δ.
        curvature: ``ggn`` (positive semi-definite for cross-entropy) or ``hessian`` (indefinite far from a
            minimum).
        options: ``scope``, ``engine`` and ``chunk_size``; see :class:`ScopedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self, damping: float = 5e-4, curvature: Literal["ggn", "hessian"] = "ggn", **options: Any
    ) -> None:
        super().__init__(**options)
        self.damping, self.curvature = checks.damping(damping), checks.curvature(curvature)
