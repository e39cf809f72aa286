"""Martens (2010): the inverse by conjugate gradients on products with the curvature."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.errors import UnsolvedError
from ssl_weighting.influence.scoped import DampedInfluence, Problem


class ConjugateGradient(DampedInfluence):
    """Solves (H + δ) v = g until |g − (H + δ)v| ≤ tolerance · |g| (Martens 2010; Table A1).

    Where it meets a direction of negative curvature, it says so in a warning and returns what it has (along g
    itself: g/δ). Stopping after ``max_iterations`` is no error: it regularises, as Martens recommends.

    Args:
        max_iterations: Most products with H.
        tolerance: Relative residual at which to stop. Float32 cannot go far below 1e-5.
        options: ``damping``, ``curvature`` and those of every scope; see :class:`DampedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(self, max_iterations: int = 20, tolerance: float = 1e-4, **options: Any) -> None:
        super().__init__(**options)
        checks.positive("model.influence.max_iterations", max_iterations)
        checks.positive("model.influence.tolerance", tolerance)
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        operator = problem.operator(self.curvature, self.damping)
        solution = torch.zeros_like(gradient)
        residual, direction = gradient.clone(), gradient.clone()
        square = gradient @ gradient
        goal = self.tolerance**2 * square
        for iteration in range(self.max_iterations):
            if square <= goal:
                break
            product = operator(direction)
            curvature = direction @ product
            if not curvature > 0:
                return self._negative(
                    solution, gradient, float(curvature / (direction @ direction)), iteration
                )
            step = square / curvature
            solution += step * direction
            residual -= step * product
            previous, square = square, residual @ residual
            direction = residual + (square / previous) * direction
        return solution

    def _negative(self, solution: Tensor, gradient: Tensor, curvature: float, iteration: int) -> Tensor:
        hint = "choose model.influence.curvature='ggn' or raise model.influence.damping by at least its size"
        if iteration == 0 and not self.damping > 0:
            raise UnsolvedError(
                f"model.influence.damping={self.damping:g}: the curvature along the validation gradient is "
                f"{curvature:.3g}; {hint}"
            )
        warnings.warn(
            f"conjugate gradients met negative curvature ({curvature:.3g}) after {iteration} steps and "
            f"stopped there; {hint}",
            RuntimeWarning,
            stacklevel=2,
        )
        return gradient / self.damping if iteration == 0 else solution
