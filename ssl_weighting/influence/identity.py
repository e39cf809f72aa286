"""Luketina et al. (2016): H ≈ I, so that v is the validation gradient itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_weighting.influence.scoped import Problem, ScopedInfluence


class Identity(ScopedInfluence):
    """Influence by the agreement of gradients: −∇L(V')ᵀ ∇ℓ_u (Luketina et al. 2016; Table A1).

    It is the effect of one step of gradient descent, up to the step size, to which M-Adam is indifferent.

    Args:
        options: ``scope``, ``engine`` and ``chunk_size``; see :class:`ScopedInfluence`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        return gradient
