"""The paper's choice (Sec. 3.1): the exact inverse Hessian of the last layer.

Only the linear head counts as trainable. Its gradients and its Hessian are outer products of features with
derivatives of the distances in the logits, so neither a backward pass through the backbone nor any
per-example gradient is needed. In the notation of the code, for an example with features x (D) and logits
z = basis·(W x + b):

    ∇ℓ   = aᵀ ⊗ x            a = basisᵀ ∂ℓ/∂z         (R)
    H    = Σ w A ⊗ x xᵀ + δ  A = basisᵀ ∂²ℓ/∂z² basis  (R, R),   w = scale · λ · mask / B
    influence_u = −a_u · (V x_u)                        V = H⁻¹ ∇L(V'), (R, D)

Where the validation term is one of the objective's own, its examples are labelled ones that train: each is then judged
by the head that training without it would give (approximate leave-one-out: Rad and Maleki 2020, "A scalable estimate of
the out-of-sample prediction error via approximate leave-one-out cross-validation"). With G_i = x_iᵀ H⁻¹ x_i (R, R),
one Newton step and Woodbury's identity give

    c_i = c + G_i (I − w_i A_i G_i)⁻¹ w_i a_i           logits in R without example i
    v_i = (I − w_i A_i G_i)⁻¹ a(c_i)                    so that  ∇L(V') = Σ w_i v_i ⊗ x_i

Several processes each sum over their own examples; gradient and Hessian are averaged over them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ssl_weighting.distributed import all_processes, averaged, process_count
from ssl_weighting.errors import UnsolvedError, UserError
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.finite import check_given, check_influences
from ssl_weighting.protocols import LinearHead, Network
from ssl_weighting.terms import LossTerm, Objective

DAMPING_PRESETS = {"paper": 5e-4, "reference_code": 1.0}


class ExactLastLayer(Influence):
    """Influence through the exact inverse Hessian of the classification head (Sec. 3.1).

    The algebra runs in float64 (float32 on devices without it), whatever precision the backbone ran in. Up to
    ``max_dense`` unknowns the Hessian is formed and factorised by Cholesky; if the batch has fewer examples
    than the features have dimensions, the problem is first reduced to the span of the features, which is
    exact. Beyond that, conjugate gradients on closed-form Hessian products solve it without forming anything.

    Args:
        damping: δ, added to the Hessian's diagonal. ``paper``: 5e-4, the weight decay, which is part of the
            loss that is trained. ``reference_code``: 1, which the authors' code adds (its Hessian takes
            weight decay with coefficient 1). 0: the pseudo-inverse, by eigenvalues, which is slower;
            cross-entropy's Hessian is always singular.
        bias: Let the head's bias take part. The authors' code leaves it out.
        max_dense: Most unknowns (R × dimensions) to solve by factorisation.

    Raises:
        UserError: For a negative damping.
    """

    reads_parameters = False
    needs_held_out = False

    def __init__(
        self,
        damping: float | Literal["paper", "reference_code"] = "paper",
        bias: bool = True,
        max_dense: int = 5000,
    ) -> None:
        preset = DAMPING_PRESETS.get(damping, -1.0) if isinstance(damping, str) else damping
        self.damping = float(preset)
        if not self.damping >= 0:
            raise UserError(
                f"model.influence.damping={damping}: must be at least 0, or 'paper' or 'reference_code'"
            )
        self.bias, self.max_dense = bias, max_dense

    @torch.no_grad()
    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        check_given(self, objective, validation)
        head = network.head(validation.head)
        rows = [
            _Rows(term, weights, head, self.bias)
            for term, weights in zip(objective.terms, objective.weights, strict=True)
            if term.head == validation.head
        ]
        target = _Rows(validation, None, head, self.bias)
        features = torch.cat([r.x for r in rows])
        to_span = None
        if process_count() * len(features) < features.shape[1]:
            to_span = torch.linalg.qr(all_processes(features).T).Q  # (D, n): every x_u lies in its span
            features = features @ to_span
        x_validation = target.x if to_span is None else target.x @ to_span
        system = _System(rows, features, self.damping, self.max_dense)
        own = any(validation is term for term in objective.terms)
        judged = system.left_out(target, x_validation) if own else target.logit_gradient()
        gradient = averaged((target.weight[:, None] * judged).T @ x_validation)
        direct = gradient.numel() <= self.max_dense
        solution = system.solve_dense(gradient) if direct else system.solve_iteratively(gradient)

        influences: list[Tensor] = []
        projected = torch.split(features @ solution.T, [len(r.x) for r in rows])
        by_term = {id(r.term): (r, p) for r, p in zip(rows, projected, strict=True)}
        for term in objective.terms:
            if term.row is None:
                continue
            if id(term) not in by_term:  # another head: its loss does not depend on the classifier's weights
                influences.append(torch.zeros_like(term.mask))
                continue
            row, product = by_term[id(term)]
            influences.append(-term.scale * (row.logit_gradient() * product).sum(-1))
        check_influences(self, influences)
        return influences


class _Rows:
    """A term's examples as rows of the last layer's linear algebra."""

    def __init__(self, term: LossTerm, weights: Tensor | None, head: LinearHead, bias: bool) -> None:
        dtype = torch.float32 if term.logits.device.type == "mps" else torch.float64
        self.term, self.logits, self.target = term, term.logits.detach().to(dtype), term.target.to(dtype)
        self.basis = None if head.basis is None else head.basis.to(dtype)
        x = term.features.detach().to(dtype)
        self.x = torch.cat((x, x.new_ones(len(x), 1)), 1) if bias and head.bias is not None else x
        weight = term.mask.to(dtype) * (term.scale / len(x))
        self.weight = weight if weights is None else weight * weights.to(dtype)

    def logit_gradient(self, shift: Tensor | None = None) -> Tensor:
        """a, (n, R); with a ``shift`` (n, R), where the head's outputs are moved by it."""
        logits = self.logits
        if shift is not None:
            logits = logits + (shift if self.basis is None else shift @ self.basis.T)
        gradient = self.term.distance.gradient(logits, self.target)
        return gradient if self.basis is None else gradient @ self.basis

    def hessian_product(self, direction: Tensor) -> Tensor:
        """The weighted A times a direction (n, R). Returns (n, R)."""
        if self.basis is not None:
            direction = direction @ self.basis.T
        product = self.weight[:, None] * self.term.distance.hessian_product(
            self.logits, self.target, direction
        )
        return product if self.basis is None else product @ self.basis


class _System:
    """(H + δ) V = G, for V and G of shape (R, d)."""

    tolerance = 1e-10
    max_iterations = 2000

    def __init__(self, rows: list[_Rows], x: Tensor, damping: float, max_dense: int) -> None:
        self.rows, self.x, self.damping, self.max_dense = rows, x, damping, max_dense
        basis = rows[0].basis
        self.metric = None if basis is None else basis.T @ basis  # δ |logit weights|², told in R

    def _products(self, direction: Tensor) -> Tensor:
        parts = torch.split(direction, [len(r.x) for r in self.rows])
        return torch.cat([r.hessian_product(part) for r, part in zip(self.rows, parts, strict=True)])

    def dense(self) -> Tensor:
        """H + δ, (R d, R d)."""
        n, d = self.x.shape
        r = self.rows[0].logit_gradient().shape[1]
        hessian = self.x.new_zeros(r, d, r, d)
        for c in range(r):
            direction = self.x.new_zeros(n, r)
            direction[:, c] = 1
            curvature = self._products(direction)[:, c:]  # row c of every A, from the diagonal on
            block = self.x.T @ (curvature[:, :, None] * self.x[:, None, :]).reshape(n, -1)
            hessian[c, :, c:] = block.view(d, r - c, d)
            hessian[c:, :, c] = block.view(d, r - c, d).permute(1, 2, 0)
        hessian = averaged(hessian)
        damping = self.damping * (torch.eye(r).to(self.x) if self.metric is None else self.metric)
        hessian.diagonal(dim1=1, dim2=3).add_(damping[:, :, None])
        return hessian.view(r * d, r * d)

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky's factor of H + δ, (R d, R d); NaN where H is not finite.

        Raises:
            UnsolvedError: Where it is not positive definite.
        """
        hessian = self.dense()
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed and hessian.isfinite().all():
            raise _not_positive(self.damping)
        return factor  # type: ignore[no-any-return]

    def left_out(self, term: _Rows, x: Tensor) -> Tensor:
        """v, (n, R): derivatives of the losses of training examples by the head that training without each gives.

        Args:
            term: The examples, which are among the rows of the Hessian.
            x: Their features in the system's coordinates, (n, d).

        Raises:
            UserError: Where the Hessian is too large to be factorised.
            UnsolvedError: Where it is not positive definite.
        """
        (n, d), r = x.shape, term.logit_gradient().shape[1]
        if r * d > self.max_dense:
            raise UserError(
                f"model.influence.max_dense={self.max_dense}: examples that train are left out by a factorised Hessian, "
                f"and this one has {r * d} unknowns; give at least {r * d}"
            )
        factor = self.factor
        unit = torch.eye(r).to(x)
        sides = torch.einsum("rs,nd->rdns", unit, x).reshape(r * d, n * r)
        solved = torch.cholesky_solve(sides, factor).view(r, d, n, r)
        g = torch.einsum("nd,rdns->nrs", x, solved)
        own = torch.stack([term.hessian_product(row.expand(n, r)) for row in unit], -1) / process_count()
        without = torch.linalg.inv(unit - own @ g)
        pull = term.weight[:, None] * term.logit_gradient() / process_count()
        shift = (g @ without @ pull[..., None]).squeeze(-1)
        judged: Tensor = (without @ term.logit_gradient(shift)[..., None]).squeeze(-1)
        return judged

    def solve_dense(self, gradient: Tensor) -> Tensor:
        if self.damping == 0:
            values, vectors = torch.linalg.eigh(self.dense())
            kept = values.abs() > values.abs().max() * len(values) * torch.finfo(values.dtype).eps
            scaled = torch.where(kept, 1 / torch.where(kept, values, 1), 0) * (vectors.T @ gradient.flatten())
            solution: Tensor = (vectors @ scaled).view_as(gradient)
            return solution
        return torch.cholesky_solve(gradient.reshape(-1, 1), self.factor).view_as(gradient)

    def solve_iteratively(self, gradient: Tensor) -> Tensor:
        """Conjugate gradients; every product costs four thin matrix products, nothing R d × R d is formed."""
        solution = torch.zeros_like(gradient)
        residual = gradient.clone()
        direction = residual.clone()
        square = residual.square().sum()
        goal = self.tolerance**2 * square
        for _ in range(self.max_iterations):
            if square <= goal:
                return solution
            product = averaged(self._products(self.x @ direction.T).T @ self.x)
            damped = direction if self.metric is None else self.metric @ direction
            product = product + self.damping * damped
            curvature = (direction * product).sum()
            if curvature <= 0:
                raise _not_positive(self.damping)
            step = square / curvature
            solution += step * direction
            residual -= step * product
            previous, square = square, residual.square().sum()
            direction = residual + (square / previous) * direction
        raise UnsolvedError(
            f"model.influence.damping={self.damping}: conjugate gradients did not reach a relative residual of "
            f"{self.tolerance} in {self.max_iterations} steps; raise the damping"
        )


def _not_positive(damping: float) -> UnsolvedError:
    return UnsolvedError(
        f"model.influence.damping={damping}: the last layer's Hessian is not positive definite; raise the damping "
        "above its most negative eigenvalue"
    )
