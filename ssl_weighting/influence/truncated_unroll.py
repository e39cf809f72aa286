"""Shaban et al. (2019): the derivative through the last actual steps of the optimiser."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.influence.base import ThetaStep
from ssl_weighting.influence.evaluation import parameters_at
from ssl_weighting.influence.scoped import Problem, ScopedInfluence
from ssl_weighting.protocols import Network
from ssl_weighting.terms import Distance, LossTerm, Objective


class TruncatedUnroll(ScopedInfluence):
    """dL(V')/dε_u had each of the last K steps on θ seen the loss + ε_u ℓ_u (Shaban et al. 2019; Table A1).

    The steps are those that the optimiser made: their batches, learning rates, weight decay and (Nesterov)
    momentum. Backwards from a = ∇L(V') at the present θ and c = 0, with ĝ_t the step's decayed gradient
    and s_t what clipping made of it,

        c ← c − α_t a                       (momentum buffer b; with nesterov c ← c − α_t μ a)
        q = c                               (what a change of ĝ_t does; with nesterov q = c − α_t a)
        influence_u += s_t q · ∇ℓ_u(θ_t)
        a ← a + (s_t H_t + wd) q,  c ← μ c

    Without momentum this is Table A1's Σ_j Π_k (I − α H_{i−k}) with the gradients taken where the steps were
    made. Weight decay stands where other solvers have their damping. Parameters outside the scope follow
    their recorded path as constants. What the steps did in training mode (batch statistics, dropout) is
    replayed in evaluation mode.

    The history is bounded by K copies of θ and K batches, and is part of a checkpoint. Before the first step
    the influence is ``Identity``'s.

    Args:
        steps: K.
        curvature: ``hessian``, which the derivative asks for, or ``ggn``.
        options: ``scope``, ``engine`` and ``chunk_size``; see :class:`ScopedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self, steps: int = 3, curvature: Literal["ggn", "hessian"] = "hessian", **options: Any
    ) -> None:
        super().__init__(**options)
        checks.positive("model.influence.steps", steps)
        self.records_steps = steps
        self.curvature = checks.curvature(curvature)
        self.history: deque[ThetaStep] = deque(maxlen=steps)

    def record_step(self, step: ThetaStep) -> None:
        """See :meth:`Influence.record_step`."""
        self.history.append(step)

    def state(self) -> list[dict[str, Any]]:
        """The recorded steps, in tensors, numbers and names."""
        return [
            {f.name: getattr(step, f.name) for f in fields(step) if f.name != "objective"}
            | {"terms": [_as_plain(t) for t in step.objective.terms], "weights": list(step.objective.weights)}
            for step in self.history
        ]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take up recorded steps."""
        self.history.clear()
        for saved in state:
            made = {name: value for name, value in saved.items() if name not in ("terms", "weights")}
            terms = [_from_plain(t) for t in saved["terms"]]
            self.history.append(ThetaStep(objective=Objective(terms, saved["weights"]), **made))

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """V for as long as there is no step to unroll: the validation gradient."""
        return gradient

    def evaluate(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`ScopedInfluence.evaluate`."""
        if not self.history:
            return super().evaluate(network, objective, validation)
        module = cast(nn.Module, network)
        indexed = [term for term in objective.terms if term.row is not None]
        adjoint = self.problem(network, objective, validation).validation_gradient()
        buffer = torch.zeros_like(adjoint)
        influences = [torch.zeros((), dtype=adjoint.dtype, device=adjoint.device) for _ in indexed]
        for step in reversed(self.history):
            with parameters_at(module, step.parameters):
                weights: list[Tensor | None] = [*step.objective.weights, *(None for _ in indexed)]
                seen = Objective([self._there(module, t) for t in (*step.objective.terms, *indexed)], weights)
                problem = self.problem(network, seen, validation)
                made = len(step.objective.terms)
                then = Objective(problem.objective.terms[:made], step.objective.weights)

                buffer = buffer - step.lr * (step.momentum if step.nesterov else 1.0) * adjoint
                pull = buffer - step.lr * adjoint if step.nesterov else buffer
                products = problem.products(problem.objective.terms[made:], pull)
                influences = [
                    sum_ + step.gradient_scale * more for sum_, more in zip(influences, products, strict=True)
                ]
                if step is not self.history[0]:
                    operator = problem.operator_of(then, self.curvature, 0.0)
                    decay = _decay(step.weight_decay, problem.parameters)
                    adjoint = adjoint + step.gradient_scale * operator(pull) + decay * pull
                    buffer = step.momentum * buffer
        return influences

    @torch.no_grad()
    def _there(self, network: nn.Module, term: LossTerm) -> LossTerm:
        """The term at the lent parameters; only the last layer reads what depends on them: the features."""
        if self.scope != "last_layer":
            return term
        return replace(term, features=network(term.inputs, term.head)[1])


def _as_plain(term: LossTerm) -> dict[str, Any]:
    plain = {f.name: getattr(term, f.name) for f in fields(term)}
    return plain | {"distance": f"{type(term.distance).__module__}.{type(term.distance).__qualname__}"}


def _from_plain(plain: Mapping[str, Any]) -> LossTerm:
    """The term, its distance made anew from the name of a distance that this process knows."""
    known, found = [Distance], {}
    while known:
        kind: type = known.pop()
        found[f"{kind.__module__}.{kind.__qualname__}"] = kind
        known += kind.__subclasses__()
    return LossTerm(**{**plain, "distance": found[plain["distance"]]()})


def _decay(weight_decay: float | Mapping[str, float], parameters: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(weight_decay, Mapping):
        return torch.tensor(weight_decay).to(next(iter(parameters.values())))
    parts = [torch.full_like(p.reshape(-1), weight_decay.get(n, 0.0)) for n, p in parameters.items()]
    return torch.cat(parts)
