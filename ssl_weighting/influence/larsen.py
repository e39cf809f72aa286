"""Larsen et al. (1996): the Hessian as an outer product of gradients, inverted by Woodbury's identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ssl_weighting import checks
from ssl_weighting.distributed import all_processes, process_rank
from ssl_weighting.errors import UnsolvedError, UserError
from ssl_weighting.influence.curvature import CurvatureOperator, flatten
from ssl_weighting.influence.evaluation import Batch, Piece, batch_size, example_weights, logits_at, rows
from ssl_weighting.influence.products import Examples
from ssl_weighting.influence.scoped import Problem, ScopedInfluence
from ssl_weighting.protocols import Inputs, Network
from ssl_weighting.terms import LossTerm, Objective

KEPT_BYTES = 2**28
COLUMNS = 2**16


class Larsen(ScopedInfluence):
    """H ≈ an outer product of gradients of the training loss, plus δ (Larsen et al. 1996; Table A1).

    ``batch``: H = G Gᵀ of the batch's gradient G = ∇L(D', U'), of rank one, so by Sherman and Morrison
    v = (g − G (G·g) / (δ + |G|²)) / δ.

    ``fisher``: H = Jᵀ W J = Σ_i w_i ∇ℓ_i ∇ℓ_iᵀ over the n examples, the empirical Fisher. J (n, P) has the
    rows ∇ℓ_i; w_i = scale · λ · mask / B. With K = J Jᵀ (n, n), Woodbury gives

        s = √W (δ + √W K √W)⁻¹ √W J g    (n,)
        v = (g − Jᵀ s) / δ               (P,)
        J v = (J g − K s) / δ            (n,), from which the influences are read off.

    K and J g are summed, and the system factorised, in float64, from per-example gradients in the network's
    own precision. J v is not taken from v: its part along the gradients is what the subtraction leaves, which
    in float32 can be mostly rounding. If J takes up to 2**28 bytes it is formed once. Beyond that, a block of
    rows of that size is kept while the others pass by, a chunk at a time, to be computed again for the next
    block: the time then grows with n² P. With several processes ``fisher`` gathers their examples, and each
    computes the whole.

    Args:
        outer_product: ``batch`` or ``fisher``.
        damping: δ, above 0: without it a matrix of low rank has no inverse.
        options: ``scope``, ``engine`` and ``chunk_size``; see :class:`ScopedInfluence`. ``fisher`` takes
            gradients by ``vmap``, or by ``serial`` if told so or if the network cannot be vectorised.

    Raises:
        UserError: For an argument out of range.
    """

    def __init__(
        self,
        outer_product: Literal["batch", "fisher"] = "batch",
        damping: float = 5e-4,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if outer_product not in ("batch", "fisher"):
            raise UserError(f"model.influence.outer_product={outer_product!r}: must be 'batch' or 'fisher'")
        checks.positive("model.influence.damping", damping)
        self.outer_product, self.damping = outer_product, damping

    def solve(self, problem: Problem, gradient: Tensor) -> Tensor:
        """See :meth:`ScopedInfluence.solve`."""
        if self.outer_product == "fisher":
            return _Fisher(problem, gradient, self.damping).solution()
        batch, metric = problem.operator("ggn", 0.0).gradient(), problem.metric()
        square = batch @ (batch / metric)
        return (gradient - batch * (batch @ (gradient / metric)) / (self.damping + square)) / (
            self.damping * metric
        )

    def evaluate(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """See :meth:`ScopedInfluence.evaluate`."""
        if self.outer_product == "batch":
            return super().evaluate(network, objective, validation)
        problem = self.problem(network, _of_all_processes(objective), validation)
        products = _Fisher(problem, problem.validation_gradient(), self.damping).products()
        sizes = [len(term.mask) for term in objective.terms]
        return [
            -term.scale * product[process_rank() * size :][:size]
            for term, product, size in zip(problem.objective.terms, products, sizes, strict=True)
            if term.row is not None
        ]


def _of_all_processes(objective: Objective) -> Objective:
    """The objective on the examples of all processes."""

    def gathered(term: LossTerm) -> LossTerm:
        return replace(
            term,
            inputs=pytree.tree_map(all_processes, term.inputs),
            features=all_processes(term.features.detach()),
            logits=all_processes(term.logits.detach()),
            target=all_processes(term.target),
            mask=all_processes(term.mask),
        )

    weights = [weight if weight is None else all_processes(weight) for weight in objective.weights]
    return Objective([gathered(term) for term in objective.terms], weights)


class _Fisher:
    """(Jᵀ W J + δ M) v = g, solved on the side of the n examples; J stands for J M^−½, g for M^−½ g, v for M^½ v."""

    def __init__(self, problem: Problem, gradient: Tensor, damping: float) -> None:
        self.problem, self.damping, self.root = problem, damping, problem.metric().sqrt()
        self.gradient = gradient / self.root
        self.serial = problem.engine == "serial"
        self.wide = torch.float32 if gradient.device.type == "mps" else torch.float64
        self.sizes = [len(term.mask) for term in problem.objective.terms]
        self.gram = gradient.new_empty(sum(self.sizes), sum(self.sizes), dtype=self.wide)  # K
        self.dots = gradient.new_empty(sum(self.sizes), dtype=self.wide)  # J g
        self._measure()
        self.coefficients = self._solve()  # s

    def solution(self) -> Tensor:
        """The vector v, (P,); Jᵀ s is one weighted backward pass."""
        objective = self.problem.objective
        weights = [s.to(self.problem.dtype) for s in torch.split(self.coefficients, self.sizes)]
        terms = [replace(t, mask=torch.ones_like(t.mask), scale=float(len(t.mask))) for t in objective.terms]
        spread = self.problem.operator_of(Objective(terms, weights), "ggn", 0.0).gradient()
        return (self.gradient - spread / self.root) / (self.damping * self.root)

    def products(self) -> list[Tensor]:
        """J v, (B,) for every term; of the distances before scaling."""
        products = (self.dots - self.gram @ self.coefficients) / self.damping
        return list(torch.split(products.to(self.problem.dtype), self.sizes))

    def _solve(self) -> Tensor:
        objective = self.problem.objective
        weights = [
            example_weights(term, weight, self.wide)
            for term, weight in zip(objective.terms, objective.weights, strict=True)
        ]
        roots = torch.cat(weights).clamp_min(0).sqrt()
        system = roots[:, None] * self.gram * roots
        system.diagonal().add_(self.damping)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed and bool(torch.isfinite(system).all()):
            raise UnsolvedError(
                f"model.influence.damping={self.damping}: lost beside the gradients' products, the largest of which "
                f"is {float(system.max()):.3g}; raise the damping"
            )
        return roots * torch.cholesky_solve((roots * self.dots)[:, None], factor)[:, 0]

    def _measure(self) -> None:
        width = len(self.gradient)
        row_bytes = width * self.gradient.element_size()
        most = 32 if self.gradient.device.type == "cpu" else 256
        size = self.problem.products_chunk or max(1, min(most, KEPT_BYTES // row_bytes))
        chunks = self._chunks(size)
        count = max(1, KEPT_BYTES // (size * row_bytes))
        for first in range(0, len(chunks), count):
            kept = chunks[first : first + count]
            begin, end = kept[0][0].start, kept[-1][0].stop
            block = self.gradient.new_empty(end - begin, width)
            for part, examples in kept:
                block[part.start - begin : part.stop - begin] = self._gradients(examples)
            self.dots[begin:end] = self._dot(block, self.gradient[None])[:, 0]
            self.gram[begin:end, begin:end] = self._dot(block, block)
            for part, examples in chunks[first + count :]:
                products = self._dot(self._gradients(examples), block)
                self.gram[part, begin:end], self.gram[begin:end, part] = products, products.T

    def _chunks(self, size: int) -> list[tuple[slice, Examples]]:
        chunks, row = [], 0
        for term in self.problem.objective.terms:
            target = term.target.to(self.problem.dtype)
            for start in range(0, batch_size(term.inputs), size):
                part = slice(start, start + size)
                examples = Examples(rows(term.inputs, part), term.head, term.distance, target[part])
                chunks.append((slice(row, row + len(examples.target)), examples))
                row += len(examples.target)
        return chunks

    def _dot(self, one: Tensor, other: Tensor) -> Tensor:
        pairs = zip(torch.split(one, COLUMNS, 1), torch.split(other, COLUMNS, 1), strict=True)
        total = one.new_zeros(len(one), len(other), dtype=self.wide)
        for a, b in pairs:
            total += a.to(self.wide) @ b.to(self.wide).T
        return total

    def _gradients(self, examples: Examples) -> Tensor:
        """∇ℓ_i of every example, (b, P)."""
        if not self.serial:
            try:
                return self._vectorised(examples) / self.root
            except RuntimeError:  # an operation without a batching rule, or not known to torch.func at all
                self.serial = True
        return self._one_by_one(examples) / self.root

    def _vectorised(self, examples: Examples) -> Tensor:
        def loss(theta: dict[str, Tensor], one: Inputs, target: Tensor) -> Tensor:
            batch = pytree.tree_map(lambda leaf: leaf[None], one)
            logits = logits_at(self.problem.network, theta, batch, examples.head)
            return examples.distance.value(logits, target[None])[0]

        def gradient(one: Inputs, target: Tensor) -> Tensor:
            return flatten(torch.func.grad(loss)(dict(self.problem.parameters), one, target))

        gradients: Tensor = torch.func.vmap(gradient)(examples.inputs, examples.target)
        return gradients.detach()

    def _one_by_one(self, examples: Examples) -> Tensor:
        ones = torch.ones(1, dtype=self.problem.dtype, device=self.gradient.device)
        gradients = []
        for i in range(len(examples.target)):
            one = slice(i, i + 1)
            piece = Piece(slice(0, 1), examples.distance, examples.target[one], ones)
            batch = Batch(rows(examples.inputs, one), examples.head, (piece,))
            operator = CurvatureOperator(self.problem.network, self.problem.parameters, [batch], "ggn", 0.0)
            gradients.append(operator.gradient())
        return torch.stack(gradients)
