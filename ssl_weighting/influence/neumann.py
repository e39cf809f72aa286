"""Lorraine et al. (2020): the inverse as a truncated Neumann series."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.errors import UnsolvedError
from ssl_weighting.influence.curvature import CurvatureOperator
from ssl_weighting.influence.scoped import DampedInfluence, Problem


class Neumann(DampedInfluence):
    """H⁻¹g ≈ α Σ_{j=0..terms} (I − α(H + δ))ʲ g (Lorraine et al. 2020, Alg. 3; Table A1).

    It converges if and only if every eigenvalue of H + δ lies between 0 and 2/α; then the remainder
    (I − α(H + δ))ʲ g shrinks with every term. A remainder that has grown longer than g proves the contrary
    and is an error. With few terms only directions of curvature above 1/(α · terms) are inverted.

    Args:
        terms: How many products with H.
        step_size: α. ``None``: 1 / (1.1 λ_max), by ``power_iterations`` more products.
        power_iterations: Products spent on λ_max where ``step_size`` is ``None``.
        options: ``damping``, ``curvature`` and those of every scope; see :class:`DampedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self,
        terms: int = 20,
        step_size: float | None = None,
        power_iterations: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        checks.positive("model.influence.terms", terms)
        checks.positive("model.influence.power_iterations", power_iterations)
        if step_size is not None:
            checks.positive("model.influence.step_size", step_size)
        self.terms, self.step_size, self.power_iterations = terms, step_size, power_iterations

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        operator = problem.operator(self.curvature, self.damping)
        step = self.step_size or 1 / (1.1 * largest_eigenvalue(operator, gradient, self.power_iterations))
        length = gradient.norm()
        remainder, total = gradient, gradient.clone()
        for _ in range(self.terms):
            product = operator(remainder)
            following = remainder - step * product
            if not following.norm() <= 1.001 * length:
                raise UnsolvedError(
                    self._diverged(float(remainder @ product / (remainder @ remainder)), step)
                )
            remainder = following
            total += remainder
        return step * total

    def _diverged(self, curvature: float, step: float) -> str:
        if curvature < 0:
            return (
                f"model.influence.curvature={self.curvature!r}: the Neumann series diverges along negative "
                f"curvature ({curvature:.3g}); choose curvature 'ggn' or raise damping={self.damping:g}"
            )
        return (
            f"model.influence.step_size={step:.3g}: the Neumann series diverges; it needs a step below 2/λ_max, "
            f"at most {2 / max(curvature, 1e-12):.3g} here (leave step_size out to have it measured)"
        )


def largest_eigenvalue(operator: CurvatureOperator, start: Tensor, iterations: int) -> float:
    """The largest |λ| of a symmetric operator, from below, by power iterations; 1 for the zero operator."""
    vector, value = start, 0.0
    for _ in range(iterations):
        length = vector.norm()
        if length == 0:
            break
        vector = operator(vector / length)
        value = float(vector.norm())
    return value or 1.0
