"""Evaluating loss terms again, at any θ, in a way that has derivatives example by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ssl_weighting.protocols import Inputs
from ssl_weighting.terms import Distance, LossTerm, Objective

ByName = Mapping[str, Tensor]
"""A tensor for each parameter in scope, by its name in ``network.named_parameters()``."""


@contextmanager
def plain_evaluation(network: nn.Module) -> Iterator[None]:
    """Make the network a smooth function of θ, example by example, and put everything back afterwards.

    BatchNorm and dropout are in evaluation mode (batch statistics couple the examples, so that a per-example
    gradient would not exist), autocast is off, attention runs by its mathematical definition and a compiled
    network runs eagerly: neither fused attention nor compiled code has second derivatives or forward mode. A backbone
    that runs batches in parts runs them whole, so that what a layer sees is the batch.
    """
    modes = [(module, module.training) for module in network.modules()]
    backbone: Any = getattr(network, "backbone", None)
    regroups = getattr(backbone, "regroups", False)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(_device(network).type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(_is_compiled(module) for module, _ in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        network.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        if regroups:
            backbone.regroups = False
        try:
            yield
        finally:
            if regroups:
                backbone.regroups = True
            torch.backends.mha.set_fastpath_enabled(fastpath)
            for module, training in modes:
                module.training = training


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def parameters_at(network: nn.Module, values: ByName) -> Iterator[None]:
    """Lend the network other values of its parameters, by their names, for a while."""
    present = [(p, p.data, values[name]) for name, p in network.named_parameters() if name in values]
    try:
        for parameter, _, value in present:
            parameter.data = value
        yield
    finally:
        for parameter, own, _ in present:
            parameter.data = own


class HeadsOnly(nn.Module):
    """The classifier as a function of its features: the last layer's problem needs no backbone.

    Parameters keep the names they have in the classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.heads = network.get_submodule("heads")

    def forward(self, features: Tensor, head: str = "classifier") -> tuple[Tensor, Tensor, Tensor]:
        """As the classifier's, with features for inputs."""
        return features, features, self.heads.get_submodule(head)(features)


def of_features(term: LossTerm, dtype: torch.dtype) -> LossTerm:
    """The same term with its features for inputs, for :class:`HeadsOnly`."""
    return replace(term, inputs=term.features.detach().to(dtype))


def logits_at(network: nn.Module, parameters: ByName, inputs: Inputs, head: str) -> Tensor:
    """Logits (B, C) of a batch with some parameters replaced; the others are constants."""
    constants = {name: p.detach() for name, p in network.named_parameters() if name not in parameters}
    output = functional_call(network, {**constants, **parameters}, (inputs, head))
    logits: Tensor = output[2]
    return logits


def fast_layout(tensor: Tensor) -> Tensor:
    """Channels last for pictures and kernels on a CPU: the convolutions then need no copies."""
    if tensor.dim() == 4 and tensor.device.type == "cpu":
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def rows(inputs: Inputs, part: slice) -> Inputs:
    """Some rows of a batch."""
    return pytree.tree_map(lambda leaf: leaf[part], inputs)


def batch_size(inputs: Inputs) -> int:
    """B."""
    return len(pytree.tree_leaves(inputs)[0])


@dataclass(frozen=True)
class Piece:
    """One term's examples within a batch: Σ_i weight_i · distance(logits_i, target_i).

    Attributes:
        rows: Which rows of the batch's logits.
        distance: How they are compared to ``target``.
        target: (n, C).
        weight: (n,).
    """

    rows: slice
    distance: Distance
    target: Tensor
    weight: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """The weighted sum, a scalar."""
        return (self.weight * self.distance.value(logits[self.rows], self.target)).sum()

    def hessian_product(self, logits: Tensor, direction: Tensor) -> Tensor:
        """The weighted Hessians in the logits times directions (n, C)."""
        product = self.distance.hessian_product(logits[self.rows], self.target, direction[self.rows])
        return self.weight[:, None] * product


@dataclass(frozen=True)
class Batch:
    """What goes through the network at once, and the pieces of the loss that are read off its logits.

    Attributes:
        inputs: The examples.
        head: The linear head they meet.
        pieces: Weighted losses of ranges of them.
    """

    inputs: Inputs
    head: str
    pieces: tuple[Piece, ...]

    def loss(self, logits: Tensor) -> Tensor:
        """The weighted sum over the pieces, a scalar."""
        return torch.stack([piece.loss(logits) for piece in self.pieces]).sum()

    def curvature(self, logits: Tensor, direction: Tensor) -> Tensor:
        """∂²loss/∂logits² times a direction (B, C). Returns (B, C)."""
        product = torch.zeros_like(direction)
        for piece in self.pieces:
            product[piece.rows] += piece.hessian_product(logits, direction)
        return product

    def take(self, index: Tensor, factor: float = 1.0) -> Batch:
        """Some examples by their rows, their weights multiplied by ``factor``."""
        pieces = []
        n = batch_size(self.inputs)
        for piece in self.pieces:
            weight, target = piece.weight.new_zeros(n), piece.target.new_zeros(n, *piece.target.shape[1:])
            weight[piece.rows], target[piece.rows] = piece.weight, piece.target
            pieces.append(Piece(slice(0, len(index)), piece.distance, target[index], factor * weight[index]))
        return Batch(pytree.tree_map(lambda leaf: leaf[index], self.inputs), self.head, tuple(pieces))

    def split(self, size: int) -> Iterator[Batch]:
        """The batch in order, at most ``size`` examples at a time."""
        n = batch_size(self.inputs)
        for start in range(0, n, size):
            stop = min(start + size, n)
            pieces = []
            for piece in self.pieces:
                low, high = max(start, piece.rows.start), min(stop, piece.rows.stop)
                if low < high:
                    own = slice(low - piece.rows.start, high - piece.rows.start)
                    here = slice(low - start, high - start)
                    pieces.append(Piece(here, piece.distance, piece.target[own], piece.weight[own]))
            yield Batch(rows(self.inputs, slice(start, stop)), self.head, tuple(pieces))


def example_weights(term: LossTerm, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Scale · λ · mask / B of every example, (B,): the training loss is Σ weight · distance."""
    weight = term.mask.to(dtype) * (term.scale / len(term.mask))
    return weight if weights is None else weight * weights.to(dtype)


def batches_of(objective: Objective, dtype: torch.dtype) -> list[Batch]:
    """The objective as weighted sums, as few forward passes as possible.

    Terms that look at the same inputs share a pass, and inputs of equal shapes are joined into one batch;
    the network is in evaluation mode, so that this changes nothing.
    """
    groups: dict[Any, list[tuple[Inputs, list[Piece]]]] = {}
    offsets: dict[Any, int] = {}
    seen: dict[tuple[int, str], tuple[Any, int]] = {}
    for term, weights in zip(objective.terms, objective.weights, strict=True):
        leaves, structure = pytree.tree_flatten(term.inputs)
        n = len(leaves[0])
        shape = (term.head, str(structure), *((leaf.shape[1:], leaf.dtype) for leaf in leaves))
        same = (id(term.inputs), term.head)
        if same not in seen:
            seen[same] = (shape, offsets.get(shape, 0))
            offsets[shape] = offsets.get(shape, 0) + n
            groups.setdefault(shape, []).append((term.inputs, []))
        start = seen[same][1]
        piece = Piece(
            slice(start, start + n),
            term.distance,
            term.target.to(dtype),
            example_weights(term, weights, dtype),
        )
        groups[shape][0][1].append(piece)
    batches = []
    for shape, members in groups.items():
        parts: Sequence[Inputs] = [inputs for inputs, _ in members]
        together = parts[0] if len(parts) == 1 else pytree.tree_map(lambda *p: torch.cat(p), *parts)
        batches.append(Batch(together, shape[0], tuple(p for _, pieces in members for p in pieces)))
    return batches
