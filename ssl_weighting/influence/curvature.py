"""Products of the training loss's curvature with a vector, over any scope of parameters.

    generalised Gauss–Newton   Σ_i w_i J_iᵀ (∂²ℓ_i/∂z_i²) J_i v + δ v      J_i = ∂z_i/∂θ
    Hessian                    ∇(∇L · v) + δ v

with w_i = scale · λ · mask / B. Both are taken by differentiating twice in reverse. J v is then the
derivative of the linear map u ↦ Jᵀu, whose graph, like the Hessian's, does not depend on v: where the batch
goes through in one piece it is built once and serves all products, and what lies below the scope is
evaluated once and for all.

Several processes each sum over their own examples; products and gradients are averaged over them, so that a
solver sees the same vectors in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_weighting.distributed import averaged
from ssl_weighting.influence.evaluation import Batch, batch_size, logits_at

Curvature = Literal["ggn", "hessian"]
Product = Callable[[Tensor], Tensor]


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """One vector of all of them, in order."""
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`flatten`."""
    parts = torch.split(vector, [t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


class CurvatureOperator:
    """v ↦ (H + δ) v, for vectors flattened over the scope.

    Call within ``plain_evaluation``.

    Args:
        network: The classifier.
        parameters: θ in scope, detached.
        batches: The training loss, as weighted sums.
        curvature: Which H.
        damping: δ, a number or one for each parameter, (P,).
        chunk_size: Examples at a time; the graph is then built anew for every product. 0: all at once, and
            the graph is kept as long as the operator.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, Tensor],
        batches: list[Batch],
        curvature: str,
        damping: float | Tensor,
        chunk_size: int = 0,
    ) -> None:
        self.network, self.batches = network, batches
        self.theta = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        self.damping = damping
        self._build = self._gauss_newton if curvature == "ggn" else self._hessian
        self.chunk_size = chunk_size
        self._kept: list[Product] | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        """(H + δ) times a vector (P,). Returns (P,)."""
        own = torch.zeros_like(vector)
        if self.chunk_size == 0:
            if self._kept is None:
                self._kept = [self._build(batch) for batch in self.batches]
            for product in self._kept:
                own += product(vector)
        else:
            for batch in self.batches:
                for part in batch.split(self.chunk_size):
                    own += self._build(part)(vector)
        return averaged(own) + self.damping * vector

    def on(self, batches: list[Batch]) -> CurvatureOperator:
        """The same operator for other examples."""
        other = CurvatureOperator.__new__(CurvatureOperator)
        other.network, other.theta, other.damping = self.network, self.theta, self.damping
        other.batches, other.chunk_size, other._kept = batches, self.chunk_size, None
        other._build = other._gauss_newton if self._build.__name__ == "_gauss_newton" else other._hessian
        return other

    @torch.enable_grad()
    def gradient(self) -> Tensor:
        """∇L of the batches, (P,), without damping."""
        total = torch.zeros_like(flatten(self.theta)).detach()
        for batch in self.batches:
            for part in batch.split(self.chunk_size or batch_size(batch.inputs)):
                total += self._reverse(part.loss(self._logits(part)))
        return averaged(total)

    @torch.enable_grad()
    def _logits(self, batch: Batch) -> Tensor:
        return logits_at(self.network, self.theta, batch.inputs, batch.head)

    def _reverse(
        self, outputs: Tensor, seed: Tensor | None = None, create_graph: bool = False, keep: bool = False
    ) -> Tensor:
        """(∂outputs/∂θ)ᵀ seed, flattened; 0 where θ plays no part."""
        if not outputs.requires_grad:
            return torch.zeros_like(flatten(self.theta))
        gradients = torch.autograd.grad(
            outputs,
            list(self.theta.values()),
            seed,
            retain_graph=keep or create_graph,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([g.reshape(-1) for g in gradients])

    @torch.enable_grad()
    def _gauss_newton(self, batch: Batch) -> Product:
        logits = self._logits(batch)
        seed = torch.zeros_like(logits, requires_grad=True)
        transposed = self._reverse(logits, seed, create_graph=True)
        values = logits.detach()

        def product(vector: Tensor) -> Tensor:
            if not transposed.requires_grad:  # no logit depends on the scope
                return torch.zeros_like(vector)
            (pushed,) = torch.autograd.grad(transposed, seed, vector, retain_graph=True)
            return self._reverse(logits, batch.curvature(values, pushed), keep=True)

        return product

    @torch.enable_grad()
    def _hessian(self, batch: Batch) -> Product:
        gradient = self._reverse(batch.loss(self._logits(batch)), create_graph=True)
        return lambda vector: self._reverse(gradient, vector, keep=True)
