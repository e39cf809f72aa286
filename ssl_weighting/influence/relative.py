"""Relative influence on single validation examples: whom does an unlabelled example agree with, and how closely?

Eq. 6 sums an example's influence over all of V'. As training fits V', the sum's terms vanish one after the other, and
what is left is the few validation examples still wrong: it tells a good example from a foreign one hardly better than
chance. Three changes keep it telling:

- *unsaturated*: the loss is the squared error at the uniform prediction, where nothing is fitted yet. With q_u the
  pseudo-label and x_u the features, ∇ℓ_u = −(q_u − 1/C) ⊗ x_u, and the Gauss-Newton Hessian is I ⊗ (S + δ), with S the
  features' covariance.
- *relative* (Barshan, Brunet and Dziugaite 2020): every gradient has length one in the metric of the inverse Hessian,

      M_uv = ∇ℓ_uᵀ H⁻¹ ∇ℓ_v / (|∇ℓ_u| |∇ℓ_v|) = cos(q_u − 1/C, y_v − 1/C) · cos_{S⁻¹}(x_u, x_v)   in [−1, 1].

- *local*: s_u is the mean of the k largest M_uv over v in V', not the sum over all of V'.

What s_u is enough, the validation examples say themselves: each is scored by the others. With τ the α-quantile and σ
the standard deviation of their scores, the influence is (τ − s_u) / σ. Examples that agree with V' less than all but a
share α of V' does lose weight; all others gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_weighting.distributed import all_processes, averaged
from ssl_weighting.errors import UserError
from ssl_weighting.influence.base import Influence, Network
from ssl_weighting.terms import LossTerm, Objective


class RelativeInfluence(Influence):
    """Local relative influence through the last layer; see the module's text.

    It costs a covariance and a |U'|×|V'| product of features: no backward pass and no system per class.

    Args:
        neighbours: k, validation examples that vouch for an example; at most all of V' but one.
        quantile: α, share of the validation examples that would themselves lose weight.
        damping: δ over the mean eigenvalue of S.

    Raises:
        UserError: For a number out of range; for fewer than 3 validation examples in a batch.
    """

    reads_parameters = False

    def __init__(self, neighbours: int = 5, quantile: float = 0.03, damping: float = 0.01) -> None:
        if neighbours < 1:
            raise UserError(f"model.influence.neighbours={neighbours}: must be at least 1")
        if not 0 < quantile < 1:
            raise UserError(f"model.influence.quantile={quantile}: must be above 0 and below 1")
        if not 0 < damping < float("inf"):
            raise UserError(f"model.influence.damping={damping}: must be a number above 0")
        self.neighbours, self.quantile, self.damping = neighbours, quantile, damping

    @torch.no_grad()
    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        terms = [t for t in objective.terms if t.index is not None and t.head == validation.head]
        vouching = all_processes(_features(validation))
        if len(vouching) < 3:
            raise UserError(
                f"data.validation_batch_size: {len(vouching)} validation examples in a batch; RelativeInfluence needs 3"
            )
        seen = torch.cat([_features(validation), *[_seen(t) for t in terms]])
        mean = averaged(seen.mean(0))
        covariance = averaged((seen - mean).T @ (seen - mean) / len(seen))
        covariance.diagonal().add_(self.damping * covariance.diagonal().mean() + torch.finfo(seen.dtype).tiny)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        factor = factor.where(failed == 0, torch.nan)  # features that are not finite: nor is the influence

        def whitened(features: Tensor) -> Tensor:
            return F.normalize(
                torch.linalg.solve_triangular(factor, (features - mean).T, upper=False).T, dim=1
            )

        x_v, y_v = whitened(vouching), all_processes(_direction(validation))
        among = (x_v @ x_v.T) * (y_v @ y_v.T)
        reference = self._score(among.fill_diagonal_(-torch.inf))
        least, spread = reference.quantile(self.quantile), reference.std().clamp(min=1e-6)
        influences = []
        for term in objective.terms:
            if term.index is None:
                continue
            if term.head != validation.head:
                influences.append(torch.zeros_like(term.mask))
                continue
            agreement = (whitened(_seen(term)) @ x_v.T) * (_direction(term) @ y_v.T)
            influences.append((least - self._score(agreement)) / spread)
        return influences

    def _score(self, agreement: Tensor) -> Tensor:
        """Mean of the k largest of every row."""
        return agreement.topk(min(self.neighbours, agreement.shape[1] - 1), dim=1).values.mean(1)


def _features(term: LossTerm) -> Tensor:
    return _precise(term.features.detach())


def _seen(term: LossTerm) -> Tensor:
    """Features of the view that the pseudo-label was guessed from: a strong view lies off, whatever its example."""
    return _features(term) if term.anchor is None else _precise(term.anchor)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _direction(term: LossTerm) -> Tensor:
    """Pseudo-labels (or labels) less 1/C, at unit length, (B, C)."""
    target = _precise(term.target)
    return F.normalize(target - target.mean(1, keepdim=True), dim=1)
