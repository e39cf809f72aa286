"""Relative influence on single validation examples: whom does an unlabelled example agree with, and how closely?

Eq. 6 sums an example's influence over all of V'. As training fits V', the sum's terms vanish one after the other, and
what is left is the few validation examples still wrong: it tells a good example from a foreign one hardly better than
chance. Three changes keep it telling:

- *unsaturated*: the loss is the squared error at the uniform prediction, where nothing is fitted yet. With q_u the
  pseudo-label and x_u the features, ∇ℓ_u = −(q_u − 1/C) ⊗ x_u, and the Gauss-Newton Hessian is I ⊗ (S + δ), with S the
  features' covariance.
- *relative* (Barshan, Brunet and Dziugaite 2020): every gradient has length one in the metric of the inverse Hessian,

      M_uv = ∇ℓ_uᵀ H⁻¹ ∇ℓ_v / (|∇ℓ_u| |∇ℓ_v|) = cos(q_u − 1/C, y_v − 1/C) · cos_{S⁻¹}(x_u, x_v)   in [−1, 1].

- *local*: s_u is the mean of the k_c largest M_uv over those v in V' that are of the class c that u is taken for, not the
  sum over all of V'; k_c is k, or all but one of the class where it has fewer.

What s_u is enough, the validation examples of a class say themselves: each is scored by the others. With τ_c the
α-quantile of their scores and σ the standard deviation of all such scores, the influence is (τ_c − s_u) / σ.
Examples that agree with their class less than all but a share α of it does lose weight; all others gain. Of fewer than
1/α examples an α-quantile is mostly chance: then the classes stand in for each other, all validation examples being
scored by as many of their class as there are of c. A class that V' lacks says nothing: its examples' influence is 0.

An example has one score, from the term whose target is a guess of its own class (``LossTerm.anchor``); its other terms
have influence 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_weighting.distributed import all_processes, averaged
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.influence.base import Influence
from ssl_weighting.influence.finite import check_given, check_influences
from ssl_weighting.protocols import Network
from ssl_weighting.terms import LossTerm, Objective


class RelativeInfluence(Influence):
    """Local relative influence through the last layer; see the module's text.

    It costs a covariance and a |U'|×|V'| product of features: no backward pass and no system per class.

    Args:
        neighbours: k, validation examples of a class that vouch for an example.
        quantile: α, share of the validation examples that would themselves lose weight.
        damping: δ over the mean eigenvalue of S.

    Raises:
        UserError: For a number out of range; for fewer than 3 validation examples in a batch; where no loss term holds a
            guess of its examples' classes.
    """

    reads_parameters = False
    needs_held_out = False

    def __init__(self, neighbours: int = 5, quantile: float = 0.03, damping: float = 0.01) -> None:
        if neighbours < 1:
            raise UserError(f"model.influence.neighbours={neighbours}: must be at least 1")
        if not 0 < quantile < 1:
            raise UserError(f"model.influence.quantile={quantile}: must be above 0 and below 1")
        if not 0 < damping < float("inf"):
            raise UserError(f"model.influence.damping={damping}: must be a number above 0")
        self.neighbours, self.quantile, self.damping = neighbours, quantile, damping
        self._lacking: set[int] = set()

    @torch.no_grad()
    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`Influence.__call__`."""
        check_given(self, objective, validation)
        guesses = _guesses(objective, validation.head)
        vouching = all_processes(_precise(validation.features.detach()))
        labelled = any(validation is term for term in objective.terms)
        if len(vouching) < 3:
            key, kind = ("labeled", "labelled") if labelled else ("validation", "validation")
            raise UserError(
                f"data.{key}_batch_size: {len(vouching)} {kind} examples in a batch; RelativeInfluence needs 3"
            )
        own = _precise(validation.features.detach())
        whitened = _whitening(torch.cat([own, *[_anchor(term) for term in guesses]]), self.damping)
        x_v, y_v = whitened(vouching), all_processes(_direction(validation))
        classes = all_processes(validation.target.argmax(1))
        counts = torch.bincount(classes, minlength=y_v.shape[1])
        among = (x_v @ x_v.T) * (y_v @ y_v.T)
        among.fill_diagonal_(-torch.inf)
        if not (counts > 1).any():  # nobody to be scored by: nothing is known
            counts = torch.zeros_like(counts)
        least, spread = self._thresholds(among, classes, counts)
        self._say_lacking(guesses, counts, labelled)
        influences = []
        for term in objective.terms:
            if term.row is None:
                continue
            if not any(term is guess for guess in guesses):
                influences.append(torch.zeros_like(term.mask))
                continue
            taken_for = term.target.argmax(1)
            agreement = (whitened(_anchor(term)) @ x_v.T) * (_direction(term) @ y_v.T)
            score = self._score(agreement, taken_for, classes, counts - 1)
            known = (counts > 0)[taken_for]
            influences.append(torch.where(known, (least[taken_for] - score) / spread, 0))
        check_influences(self, influences)
        return influences

    def _score(self, agreement: Tensor, taken_for: Tensor, classes: Tensor, most: Tensor) -> Tensor:
        """Mean of the k_c largest entries of every row (n, V) in the columns of its class.

        Args:
            agreement: M_uv.
            taken_for: Class of each row, (n,) int64.
            classes: Class of each column, (V,) int64.
            most: Neighbours that there are at most in each class, (C,) int64.

        Returns:
            (n,); not finite where the class has none.
        """
        same = taken_for[:, None] == classes
        width = min(self.neighbours, agreement.shape[1])
        best = agreement.masked_fill(~same, -torch.inf).topk(width, dim=1).values
        k = most.clamp(1, width)[taken_for]
        return best.cumsum(1).gather(1, k[:, None] - 1)[:, 0] / k

    def _thresholds(self, among: Tensor, classes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """τ_c (C,) and σ, from what the validation examples say of each other.

        Args:
            among: M of the validation examples (V, V), −∞ for an example and itself.
            classes: Their classes, (V,) int64.
            counts: How many there are of each class, (C,) int64.
        """
        least = among.new_zeros(len(counts))
        several = (counts > 1)[classes]
        if not several.any():
            return least, among.new_ones(())
        scores = self._score(among, classes, classes, counts - 1)
        same = classes[:, None] == classes
        rank = (same & same.new_ones(same.shape).tril(-1)).sum(1)  # within the class
        further = (rank - rank[:, None]) % counts[classes][:, None]  # how far behind, in a circle
        for n in sorted({*counts[counts > 0].tolist()}):
            by_as_many = among.masked_fill(further > n, -torch.inf)
            most = torch.minimum(counts - 1, (counts * 0 + n - 1).clamp(min=1))
            alike = self._score(by_as_many, classes, classes, most)[several].quantile(self.quantile)
            for c in (counts == n).nonzero().flatten().tolist():
                own = scores[classes == c].quantile(self.quantile) if n > 1 else alike
                least[c] = alike + n / (n + 1 / self.quantile) * (own - alike)
        return least, scores[several].std().clamp(min=1e-6)

    def _say_lacking(self, guesses: list[LossTerm], counts: Tensor, labelled: bool) -> None:
        """Say once of each class that examples are taken for it and none validates it."""
        taken_for = torch.cat([term.target.argmax(1) for term in guesses])
        lacking = {*taken_for[(counts == 0)[taken_for]].tolist()} - self._lacking
        if lacking:
            self._lacking |= lacking
            kind = "labelled" if labelled else "validation"
            mend = (
                "label more of it, or raise data.labeled_batch_size" if labelled else "validate on more of it"
            )
            warnings.warn(
                f"model.influence=RelativeInfluence: too few {kind} examples of class "
                f"{', '.join(map(str, sorted(lacking)))} in a batch: examples that are taken for it keep their weights; "
                f"{mend}",
                DataWarning,
                stacklevel=2,
            )


def _guesses(objective: Objective, head: str) -> list[LossTerm]:
    """The terms whose targets are guesses of their examples' own classes: the first of those of the same examples.

    Raises:
        UserError: If there is none.
    """
    found: list[LossTerm] = []
    for term in objective.terms:
        is_guess = term.row is not None and term.head == head and term.anchor is not None
        if is_guess and not any(torch.equal(term.row, other.row) for other in found):  # type: ignore[arg-type]
            found.append(term)
    if not found and any(term.row is not None for term in objective.terms):
        raise UserError(
            "model.influence=RelativeInfluence: none of the method's loss terms compares examples to a guess of their "
            "own class (MixMatch's are mixed); give --model.influence ExactLastLayer, or another --model.algorithm"
        )
    return found


def _whitening(seen: Tensor, damping: float) -> Callable[[Tensor], Tensor]:
    """Maps features to unit length in the metric of the inverse covariance of those that were seen, (n, D)."""
    mean = averaged(seen.mean(0))
    covariance = averaged((seen - mean).T @ (seen - mean) / len(seen))
    covariance.diagonal().add_(damping * covariance.diagonal().mean() + torch.finfo(seen.dtype).tiny)
    factor = torch.linalg.cholesky_ex(covariance).L

    def whitened(features: Tensor) -> Tensor:
        return F.normalize(torch.linalg.solve_triangular(factor, (features - mean).T, upper=False).T, dim=1)

    return whitened


def _anchor(term: LossTerm) -> Tensor:
    """Features of the view that the target was guessed from: a strong view lies off, whatever its example."""
    assert term.anchor is not None
    return _precise(term.anchor)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _direction(term: LossTerm) -> Tensor:
    """Pseudo-labels (or labels) less 1/C, at unit length, (B, C)."""
    target = _precise(term.target)
    return F.normalize(target - target.mean(1, keepdim=True), dim=1)
