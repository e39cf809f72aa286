"""Agarwal et al. (2017), Koh & Liang (2017): stochastic estimation of the inverse, LiSSA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.errors import UnsolvedError
from ssl_weighting.influence.curvature import CurvatureOperator
from ssl_weighting.influence.evaluation import Batch, batch_size
from ssl_weighting.influence.neumann import largest_eigenvalue
from ssl_weighting.influence.scoped import DampedInfluence, Problem

DOUBLINGS = 10
"""Of a scale of its own, before it gives up."""


class LiSSA(DampedInfluence):
    """h ← g + h − (H_b + δ) h / scale, ``depth`` times, each on a random minibatch b; H⁻¹g ≈ h / scale.

    The mean over ``repeats`` independent runs is returned. Table A1 calls it stochastic CG. In expectation
    it is the Neumann series with step 1/scale and ``depth`` terms; δ is added to H itself, so that its fixed
    point is (H + δ)⁻¹ g (other codes damp by (1 − d) h, which amounts to δ = d · scale). Minibatches are
    drawn from the examples of weight above 0, from PyTorch's default generator.

    Args:
        depth: Minibatches a run.
        batch_size: Examples in a minibatch.
        scale: Must exceed half the largest eigenvalue of every H_b. ``None``: 1.5 λ_max of the whole batch's
            H, doubled where a run diverges, which unequal λ can bring about.
        repeats: Runs.
        options: ``damping``, ``curvature`` and those of every scope; see :class:`DampedInfluence`.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self,
        depth: int = 20,
        batch_size: int = 64,
        scale: float | None = None,
        repeats: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in (("depth", depth), ("batch_size", batch_size), ("repeats", repeats)):
            checks.positive(f"model.influence.{name}", value)
        if scale is not None:
            checks.positive("model.influence.scale", scale)
        self.depth, self.batch_size, self.scale, self.repeats = depth, batch_size, scale, repeats

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        operator = problem.operator(self.curvature, self.damping)
        scale = self.scale or 1.5 * largest_eigenvalue(operator, gradient, iterations=8)
        sampler = _Minibatches(operator.batches, self.batch_size)
        total = torch.zeros_like(gradient)
        runs = doublings = 0
        while runs < self.repeats:
            estimate = self._run(operator, sampler, gradient, scale)
            if estimate is not None:
                total += estimate
                runs += 1
            elif self.scale is None and doublings < DOUBLINGS:
                scale *= 2
                doublings += 1
            else:
                raise UnsolvedError(
                    f"model.influence.scale={scale:.3g}: LiSSA diverges; raise scale (or batch_size="
                    f"{self.batch_size}), and with curvature='hessian' choose 'ggn' or raise "
                    f"damping={self.damping:g}"
                )
        return total / self.repeats

    def _run(
        self, operator: CurvatureOperator, sampler: _Minibatches, gradient: Tensor, scale: float
    ) -> Tensor | None:
        """One estimate of H⁻¹g; ``None`` if it diverges."""
        # A convergent run's h is at most g · scale / δ long, and at most (depth + 1) g.
        bound = 2 * float(gradient.norm()) * (self.depth + 1)
        estimate = gradient.clone()
        for _ in range(self.depth):
            estimate = gradient + estimate - operator.on(sampler.draw())(estimate) / scale
            if not estimate.norm() <= bound:
                return None
        return estimate / scale


class _Minibatches:
    """Unbiased samples of a weighted sum over examples."""

    def __init__(self, batches: list[Batch], size: int) -> None:
        self.batches, self.size = batches, size
        self.useful = []
        for batch in batches:
            weight = batch.pieces[0].weight.new_zeros(batch_size(batch.inputs))
            for piece in batch.pieces:
                weight[piece.rows] += piece.weight.abs()
            self.useful.append(weight.nonzero()[:, 0])
        self.total = sum(map(len, self.useful))

    def draw(self) -> list[Batch]:
        """``size`` examples without replacement, from all batches together."""
        if self.size >= self.total:
            return self.batches
        factor = self.total / self.size
        chosen = torch.randperm(self.total)[: self.size]
        drawn, start = [], 0
        for batch, useful in zip(self.batches, self.useful, strict=True):
            own = chosen[(chosen >= start) & (chosen < start + len(useful))] - start
            start += len(useful)
            if len(own):
                drawn.append(batch.take(useful[own.to(useful.device)], factor))
        return drawn
