"""Loss terms: what an SSL method says about a batch, before anybody weighs it.

An SSL method only decides what each unlabelled example is compared to. It says so with ``LossTerm`` objects,
which know nothing of the per-example weights, the optimiser or the data set. The training loss, the exact
last-layer influence and the whole-network influence all follow from them.

Shapes: B examples, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_weighting.protocols import Inputs


class Distance(ABC):
    """A per-example loss ℓ(logits, target), with its gradient and Hessian in the logits.

    Only :meth:`value` has to be written; derivatives then come from ``torch.func``, example by example.
    Closed forms override them where they are cheaper. All methods keep the dtype of ``logits``.
    """

    @abstractmethod
    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every example.

        Args:
            logits: (B, C), any floating dtype.
            target: (B, C), probabilities, without gradient.

        Returns:
            (B,), unreduced.
        """

    def gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """∂ℓ/∂logits of every example, (B, C)."""
        gradient: Tensor = torch.func.grad(lambda z: self.value(z, target).sum())(logits)
        return gradient

    def hessian(self, logits: Tensor, target: Tensor) -> Tensor:
        """∂²ℓ/∂logits² of every example, (B, C, C). Indefinite where the distance is not convex."""

        def one(z: Tensor, y: Tensor) -> Tensor:
            return self.value(z[None], y[None])[0]

        hessian: Tensor = torch.func.vmap(torch.func.hessian(one))(logits, target)
        return hessian

    def hessian_product(self, logits: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        """∂²ℓ/∂logits² times a direction (B, C), without forming the Hessian. Returns (B, C)."""
        product: Tensor = torch.func.jvp(lambda z: self.gradient(z, target), (logits,), (direction,))[1]
        return product


class CrossEntropy(Distance):
    """Cross-entropy −Σ y log softmax(z), hard or soft targets.

    Its Hessian diag(p) − p pᵀ does not depend on targets that sum to one, and is positive semi-definite.
    """

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        return -(target * F.log_softmax(logits, -1)).sum(-1)

    def gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """Σy · softmax(z) − y, (B, C)."""
        return target.sum(-1, keepdim=True) * logits.softmax(-1) - target

    def hessian(self, logits: Tensor, target: Tensor) -> Tensor:
        """Σy · (diag(p) − p pᵀ), (B, C, C)."""
        p = logits.softmax(-1)
        return target.sum(-1)[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])

    def hessian_product(self, logits: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        """Σy · p ∘ (v − p·v), (B, C)."""
        p = logits.softmax(-1)
        centred = direction - (p * direction).sum(-1, keepdim=True)
        return target.sum(-1, keepdim=True) * p * centred


class KLDivergence(CrossEntropy):
    """KL(target ‖ softmax(z)): cross-entropy less the target's entropy, so the same derivatives.

    UDA's consistency loss (Xie et al. 2019, Eq. 1).
    """

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        return super().value(logits, target) + torch.xlogy(target, target).sum(-1)


class SquaredError(Distance):
    """Brier score: (softmax(z) − y)², averaged over the classes."""

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        return (logits.softmax(-1) - target).square().mean(-1)


class Entropy(Distance):
    """Shannon entropy of softmax(z), in nats; the target is not looked at."""

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        log_p = F.log_softmax(logits, -1)
        return -(log_p.exp() * log_p).sum(-1)


class OneVsAll(Distance):
    """A distance of two logits, summed over as many pairs of them: each class's own "no" and "yes".

    The logits (B, 2C) of class c are 2c, "no", and 2c + 1, "yes", and so are the entries of the target. A pair whose
    target is (0, 0) adds nothing to a cross-entropy.

    Args:
        each: How one pair is compared.
    """

    def __init__(self, each: Distance) -> None:
        self.each = each

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`Distance.value`."""
        values = self.each.value(logits.reshape(-1, 2), target.reshape(-1, 2))
        return values.reshape(len(logits), -1).sum(-1)

    def gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """That of each pair, (B, 2C)."""
        return self.each.gradient(logits.reshape(-1, 2), target.reshape(-1, 2)).reshape(logits.shape)

    def hessian_product(self, logits: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        """That of each pair, (B, 2C): pairs have nothing to do with each other."""
        pairs = (part.reshape(-1, 2) for part in (logits, target, direction))
        return self.each.hessian_product(*pairs).reshape(logits.shape)


CROSS_ENTROPY = CrossEntropy()
KL_DIVERGENCE = KLDivergence()
SQUARED_ERROR = SquaredError()
ENTROPY = Entropy()


@dataclass(frozen=True)
class LossTerm:
    """One unreduced term of an SSL method's loss on one batch.

    Its share of the training loss is ``scale · mean(λ[row] · mask · distance(logits, target))``, where the
    mean runs over all B examples, masked ones included, and λ is 1 for a term without ``row``.

    Attributes:
        name: What it is called in logs and error messages.
        inputs: What the backbone saw, so that the term can be evaluated again at other parameters.
        features: (B, D), what the linear head saw.
        logits: (B, C), what the head said.
        target: (B, C), detached: the label, or the pseudo-label.
        distance: How logits and target are compared.
        mask: (B,), floating, ≥ 0. Confidence masks are 0 or 1; training-signal annealing puts its own
            normalisation here.
        row: (B,), int64 rows of Λ; ``None`` for labelled terms, whose weight is 1.
        head: Which linear head made the logits.
        scale: Coefficient × ramp.
        confidence: (B,), the largest probability of the guess that the target was made of, for the record;
            ``None`` if that is the target itself.
        anchor: (B, D), detached: features of the view from which the target, a guess of each example's own class, was
            made; ``None`` where the target is no such guess: a mix of examples, a cost, the truth.
    """

    name: str
    inputs: Inputs
    features: Tensor
    logits: Tensor
    target: Tensor
    distance: Distance
    mask: Tensor
    row: Tensor | None = None
    head: str = "classifier"
    scale: float = 1.0
    confidence: Tensor | None = None
    anchor: Tensor | None = None

    def losses(self) -> Tensor:
        """Masked, unweighted losses, (B,), at least float32."""
        logits = self.logits.float() if self.logits.dtype in (torch.bfloat16, torch.float16) else self.logits
        return self.mask * self.distance.value(logits, self.target)

    def loss(self, weights: Tensor | None = None) -> Tensor:
        """This term's share of the training loss, a scalar.

        Args:
            weights: λ of each example, (B,); ``None`` means 1.
        """
        losses = self.losses()
        return self.scale * (losses if weights is None else weights * losses).mean()


@dataclass(frozen=True)
class Objective:
    """The training loss L(D', U', θ, Λ) of one batch: its terms and the λ of their examples.

    Attributes:
        terms: All terms, evaluated at the present θ.
        weights: For each term λ, (B,), or ``None`` where it is 1.
    """

    terms: Sequence[LossTerm]
    weights: Sequence[Tensor | None]

    def loss(self) -> Tensor:
        """Σ scale · mean(λ · mask · distance), a scalar."""
        return torch.stack([t.loss(w) for t, w in zip(self.terms, self.weights, strict=True)]).sum()
