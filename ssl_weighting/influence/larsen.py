"""Larsen et al. (1996): the Hessian as an outer product of gradients, inverted by Woodbury's identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_weighting.errors import UserError
from ssl_weighting.influence.evaluation import example_weights
from ssl_weighting.influence.scoped import Problem, ScopedInfluence, check_positive
from ssl_weighting.terms import Objective


class Larsen(ScopedInfluence):
    """H ≈ an outer product of gradients of the training loss, plus δ (Larsen et al. 1996; Table A1).

    ``batch``: H = G Gᵀ of the batch's gradient G = ∇L(D', U'), of rank one, so by Sherman and Morrison
    v = (g − G (G·g) / (δ + |G|²)) / δ.

    ``fisher``: H = Σ_i w_i ∇ℓ_i ∇ℓ_iᵀ over the n examples, the empirical Fisher, w_i = scale · λ · mask / B.
    With A the n × P matrix of rows √w_i ∇ℓ_i, Woodbury gives v = (g − Aᵀ (δ + A Aᵀ)⁻¹ A g) / δ. The n × n
    system is solved by conjugate gradients on products with A (per-example products) and Aᵀ (one weighted
    backward pass), so no per-example gradient is ever held.

    Args:
        outer_product: ``batch`` or ``fisher``.
        damping: δ, above 0: without it a matrix of low rank has no inverse.
        tolerance: Relative residual of the ``fisher`` system.
        max_iterations: Most steps on the ``fisher`` system; n of them solve it exactly but for rounding.
        options: ``scope``, ``engine`` and ``chunk_size``; see :class:`ScopedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self,
        outer_product: Literal["batch", "fisher"] = "batch",
        damping: float = 5e-4,
        tolerance: float = 1e-4,
        max_iterations: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if outer_product not in ("batch", "fisher"):
            raise UserError(f"influence.outer_product={outer_product!r}: must be 'batch' or 'fisher'")
        for name, value in (
            ("damping", damping),
            ("tolerance", tolerance),
            ("max_iterations", max_iterations),
        ):
            check_positive(name, value)
        self.outer_product, self.damping = outer_product, damping
        self.tolerance, self.max_iterations = tolerance, max_iterations

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        if self.outer_product == "fisher":
            return self._woodbury(_Fisher(problem), gradient)
        batch = problem.operator("ggn", 0.0).gradient()
        return (gradient - batch * (batch @ gradient) / (self.damping + batch @ batch)) / self.damping

    def _woodbury(self, fisher: _Fisher, gradient: Tensor) -> Tensor:
        residual = fisher.gather(gradient)  # A g
        solution, direction = torch.zeros_like(residual), residual.clone()
        square = residual @ residual
        goal = self.tolerance**2 * square
        for _ in range(self.max_iterations):
            if square <= goal:
                break
            product = fisher.gather(fisher.spread(direction)) + self.damping * direction
            step = square / (direction @ product)
            solution += step * direction
            residual -= step * product
            previous, square = square, residual @ residual
            direction = residual + (square / previous) * direction
        return (gradient - fisher.spread(solution)) / self.damping


class _Fisher:
    """A, the matrix of rows √w_i ∇ℓ_i, as two products."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.terms = problem, problem.objective.terms
        self.roots, self.factors = [], []
        for term, weights in zip(self.terms, problem.objective.weights, strict=True):
            weight = example_weights(term, weights, problem.dtype)  # of the loss before scaling
            self.roots.append(weight.clamp_min(0).sqrt())
            self.factors.append(1 / term.scale if term.scale else 0.0)

    def gather(self, vector: Tensor) -> Tensor:
        """A v, (n,), for v (P,)."""
        products = self.problem.products(self.terms, vector)
        return torch.cat([p * f * r for p, f, r in zip(products, self.factors, self.roots, strict=True)])

    def spread(self, coefficients: Tensor) -> Tensor:
        """Aᵀ c, (P,), for c (n,)."""
        parts = torch.split(coefficients, [len(r) for r in self.roots])
        ones = [torch.ones_like(t.mask) for t in self.terms]
        terms = [replace(t, mask=one, scale=float(len(one))) for t, one in zip(self.terms, ones, strict=True)]
        weights = [c * r for c, r in zip(parts, self.roots, strict=True)]
        return self.problem.operator_of(Objective(terms, weights), "ggn", 0.0).gradient()
