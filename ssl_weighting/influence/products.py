"""Products of every example's gradient with one vector, ∇ℓ_uᵀ v, without ever holding the gradients.

Four ways of the same number, behind :func:`per_example_products`:

``serial``      one backward pass an example; what the others are measured against (Sec. 4.4).
``vmap``        one vectorised backward pass; holds every gradient of a chunk.
``activation``  one backward pass to the activations only, and one more application of every layer (App. B).
``jvp``         forward mode: the products are the logits' tangents, no backward pass at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.influence.activation import UnsupportedLayerError, activation_products
from ssl_weighting.influence.evaluation import ByName, batch_size, logits_at, plain_evaluation, rows
from ssl_weighting.influence.forward_mode import ForwardModeError, logits_and_tangents
from ssl_weighting.protocols import Inputs
from ssl_weighting.terms import Distance, LossTerm

Engine = Literal["auto", "jvp", "activation", "vmap", "serial"]


class Examples(NamedTuple):
    """Some examples of a term: what the network sees, and what its logits are compared to."""

    inputs: Inputs
    head: str
    distance: Distance
    target: Tensor


EngineFunction = Callable[[nn.Module, ByName, ByName, Examples], Tensor]


def per_example_products(
    network: nn.Module,
    parameters: ByName,
    terms: Sequence[LossTerm],
    direction: ByName,
    engine: str = "auto",
    chunk_size: int = 0,
) -> list[Tensor]:
    """∇ℓ_uᵀ v for every example u of the terms.

    ℓ_u is the example's own unmasked loss times its term's ``scale``, not divided by the batch size; the
    gradient is with respect to ``parameters`` alone. The network is evaluated as in ``plain_evaluation``.

    Args:
        network: ``network(inputs, head) -> (inputs, features, logits)``.
        parameters: θ in scope, detached, by their names in ``network.named_parameters()``.
        terms: Whose examples.
        direction: v, of the names and shapes of ``parameters``.
        engine: See the module. ``auto``: forward mode, the fastest and leanest; where an operation has no
            forward derivative, ``activation``, and where a layer is not known to it, ``vmap``.
        chunk_size: Examples at a time, which bounds the memory. 0: 32 on a CPU, whose caches they fit, else
            256.

    Returns:
        For every term (B,), in the dtype of ``parameters``.

    Raises:
        UserError: If the engine cannot do one of the network's layers; names it.
    """
    checks.one_of("model.influence.engine", engine, get_args(Engine))
    reference = next(iter(parameters.values()))
    size = chunk_size or (32 if reference.device.type == "cpu" else 256)
    with plain_evaluation(network):
        if engine == "auto":
            return _automatic(network, parameters, terms, direction, size)
        return _run(ENGINES[engine], network, parameters, terms, direction, size)


def _run(
    function: EngineFunction,
    network: nn.Module,
    parameters: ByName,
    terms: Sequence[LossTerm],
    direction: ByName,
    size: int,
) -> list[Tensor]:
    dtype = next(iter(parameters.values())).dtype
    products = []
    for term in terms:
        parts = []
        for start in range(0, batch_size(term.inputs), size):
            part = slice(start, start + size)
            examples = Examples(
                rows(term.inputs, part), term.head, term.distance, term.target[part].to(dtype)
            )
            parts.append(function(network, parameters, direction, examples))
        products.append(term.scale * torch.cat(parts))
    return products


def _automatic(
    network: nn.Module, parameters: ByName, terms: Sequence[LossTerm], direction: ByName, size: int
) -> list[Tensor]:
    try:
        return _run(_jvp, network, parameters, terms, direction, size)
    except ForwardModeError:
        pass
    try:
        return _run(activation_products, network, parameters, terms, direction, size)
    except UnsupportedLayerError:
        return _run(_vmap, network, parameters, terms, direction, size)


@torch.no_grad()
def _jvp(network: nn.Module, parameters: ByName, direction: ByName, examples: Examples) -> Tensor:
    logits, tangents = logits_and_tangents(network, parameters, direction, examples.inputs, examples.head)
    return (examples.distance.gradient(logits, examples.target) * tangents).sum(-1)


def _vmap(network: nn.Module, parameters: ByName, direction: ByName, examples: Examples) -> Tensor:
    def loss(theta: ByName, one: Inputs, target: Tensor) -> Tensor:
        batch = torch.utils._pytree.tree_map(lambda leaf: leaf[None], one)
        logits = logits_at(network, theta, batch, examples.head)
        return examples.distance.value(logits, target[None])[0]

    def product(one: Inputs, target: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(dict(parameters), one, target)
        return torch.stack([(g * direction[name]).sum() for name, g in gradients.items()]).sum()

    products: Tensor = torch.func.vmap(product)(examples.inputs, examples.target)
    return products.detach()


@torch.enable_grad()
def _serial(network: nn.Module, parameters: ByName, direction: ByName, examples: Examples) -> Tensor:
    theta = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    products = []
    for i in range(len(examples.target)):
        one = slice(i, i + 1)
        logits = logits_at(network, theta, rows(examples.inputs, one), examples.head)
        loss = examples.distance.value(logits, examples.target[one])[0]
        if not loss.requires_grad:  # another head than the scope's
            products.append(torch.zeros_like(loss))
            continue
        gradients = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        dots = [(g * direction[n]).sum() for n, g in zip(theta, gradients, strict=True) if g is not None]
        products.append(torch.stack(dots).sum())
    return torch.stack(products).detach()


ENGINES: dict[str, EngineFunction] = {
    "jvp": _jvp,
    "activation": activation_products,
    "vmap": _vmap,
    "serial": _serial,
}
