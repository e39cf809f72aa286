"""Per-example gradient products, every engine and the peers side by side (Section 4.4, first table).

What a product must cost. Count one pass of all convolutions over the batch as 1: a forward pass is 1, a
backward pass 2 (to the inputs and to the weights), so the reference, one batch forward and backward, is 3.

    ============  =======================================================  ======  =====================
    engine        passes                                                   sum     ratio to the reference
    ============  =======================================================  ======  =====================
    jvp           W∗x, W∗ẋ, V∗x                                            3       1.0
    activation    W∗x, backward to the inputs, V∗a                         3       1.0
    vmap          W∗x, backward to inputs, to every example's weights      3       1.0, and n·P numbers
    serial        the same, one example at a time                          3       1.0, and no parallelism
    differences   two forward passes at θ ± εv                             2       0.67, inexact
    ============  =======================================================  ======  =====================

Three is the least for an exact product: y + ε ẏ = (W + εV) ∗ (x + ε ẋ) is a product of polynomials modulo
ε², of bilinear rank 3. What lies between that floor and the clock is memory traffic: the reference writes
every activation and reads it back, whereas forward mode keeps a chunk of examples in cache, needs nothing
twice, and a CPU's convolutions run in channels-last order without copies. That is where it
can win.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lab.speed.comparison import compare, references
from lab.speed.timing import Call, Options, Row, forward_backward, parse, relative_error, set_up, terms
from ssl_weighting.influence.products import per_example_products
from ssl_weighting.influence.scope import scope_parameters

ENGINES = ("jvp", "activation", "vmap", "serial")


def main(argv: list[str]) -> int:
    """Run ``python -m lab bench per-example-gradient`` with its options. Returns the exit status."""
    run(
        parse(
            "python -m lab bench per-example-gradient",
            "Products of every unlabelled example's gradient with one vector, all engines side by side.",
            argv,
        )
    )
    return 0


def run(options: Options) -> list[Row]:
    """See :func:`~lab.speed.comparison.compare`."""
    title = f"Per-example gradient products: {options.network}, {options.unlabeled} examples"
    return compare(options, make_calls, _errors, title, PEERS)


def make_calls(options: Options) -> Mapping[str, Callable[[], Call]]:
    """What is measured, by name: the references, every engine over the whole network, and the peers found."""
    images = options.network.startswith("wrn")
    builders = references(options, _reference)
    for engine in ENGINES:
        builders[f"{engine} | all"] = partial(_products, options, engine, "all")
    for scope in ("last_block", "last_layer"):
        builders[f"jvp | {scope}"] = partial(_products, options, "jvp", scope)
    for peer, build in PEERS.items():
        if images and importlib.util.find_spec(peer) is not None:
            builders[f"{peer} | all"] = partial(build, options)
    return builders


def _reference(options: Options, channels_last: bool) -> Call:
    setup = set_up(replace(options, labeled=1, validation=1), channels_last=channels_last)
    return partial(forward_backward, setup.network, setup.unlabeled)


def _products(
    options: Options, engine: str, scope: str, dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """A call that gives the products of a fixed direction, drawn in proportion to the parameters."""
    setup = set_up(replace(options, labeled=1, validation=1), dtype)
    objective, _ = terms(setup)
    parameters = scope_parameters(setup.network, scope)
    generator = torch.Generator().manual_seed(1)
    direction = {
        n: torch.randn(p.shape, generator=generator).to(p) * p.std(correction=0)
        for n, p in parameters.items()
    }
    return lambda: per_example_products(setup.network, parameters, objective.terms[1:], direction, engine)[0]


def _errors(options: Options) -> dict[str, float]:
    few = replace(options, unlabeled=min(options.unlabeled, options.float64_examples))
    errors = {}
    for scope, engines in (("all", ENGINES), ("last_block", ("jvp",)), ("last_layer", ("jvp",))):
        truth = _products(few, "serial", scope, torch.float64)()
        for engine in engines:
            errors[f"{engine} | {scope}"] = relative_error(_products(few, engine, scope)(), truth)
    for peer, build in PEERS.items():
        if importlib.util.find_spec(peer) is not None and options.network.startswith("wrn"):
            gradients = build(few)()
            truth = _products(few, "serial", "all", torch.float64)()
            errors[f"{peer} | all"] = relative_error(gradients, truth)
    return errors


def _plain(options: Options) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """Images to logits, the images, the targets and the direction, for peers that want an ordinary module."""
    setup = set_up(replace(options, labeled=1, validation=1))
    objective, _ = terms(setup)
    head = nn.Linear(setup.network.backbone.feature_dim, 10, device=options.device)  # peers go by exact type
    head.load_state_dict(setup.network.heads["classifier"].state_dict())
    network = nn.Sequential(setup.network.backbone, head).eval()
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False  # which the peers' backward hooks forbid
    generator = torch.Generator().manual_seed(1)
    direction = {}
    for name, p in setup.network.named_parameters():
        plain = name.replace("backbone.", "0.", 1).replace("heads.classifier.", "1.", 1)
        direction[plain] = torch.randn(p.shape, generator=generator).to(p) * p.detach().std(correction=0)
    return network, setup.unlabeled, objective.terms[1].target, direction


def _dot(gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(
        [gradient.flatten(1) @ direction[name].flatten() for name, gradient in gradients.items()]
    ).sum(0)


def _backpack(options: Options) -> Callable[[], Tensor]:
    from backpack import backpack, extend  # type: ignore[import-not-found, import-untyped]
    from backpack.extensions import BatchGrad  # type: ignore[import-not-found, import-untyped]

    network, images, target, direction = _plain(options)
    extend(network)

    def call() -> Tensor:
        parts = []
        for x, y in zip(torch.split(images, 32), torch.split(target, 32), strict=True):
            network.zero_grad()
            with backpack(BatchGrad()):
                (-(y * network(x).log_softmax(-1)).sum(-1)).sum().backward()
            parts.append(_dot({n: _take(p, "grad_batch") for n, p in network.named_parameters()}, direction))
        return torch.cat(parts)

    return call


def _opacus(options: Options) -> Callable[[], Tensor]:
    from opacus.grad_sample import (  # type: ignore[import-not-found]
        GradSampleModule,
        register_grad_sampler,
    )

    @register_grad_sampler(nn.BatchNorm2d)  # type: ignore[untyped-decorator]
    def batch_norm(layer: nn.BatchNorm2d, activations: Any, backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        x = activations[0] if isinstance(activations, (list, tuple)) else activations
        assert layer.running_mean is not None
        assert layer.running_var is not None
        factor = (layer.running_var + layer.eps).rsqrt()[:, None, None]
        normalised = (x - layer.running_mean[:, None, None]) * factor
        return {layer.weight: (normalised * backprops).sum((2, 3)), layer.bias: backprops.sum((2, 3))}

    network, images, target, direction = _plain(options)
    sampler = GradSampleModule(network, loss_reduction="sum", strict=False)
    for module in sampler.modules():  # its hooks look away in evaluation mode, which batch norm must be in
        module.training = not isinstance(module, nn.BatchNorm2d)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = True
            module.forward = partial(_running_batch_norm, module)  # type: ignore[method-assign]

    def call() -> Tensor:
        parts = []
        for x, y in zip(torch.split(images, 32), torch.split(target, 32), strict=True):
            sampler.zero_grad()
            (-(y * sampler(x).log_softmax(-1)).sum(-1)).sum().backward()
            parts.append(_dot({n: _take(p, "grad_sample") for n, p in network.named_parameters()}, direction))
        return torch.cat(parts)

    return call


def _running_batch_norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return nn.functional.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
    )


def _take(parameter: Tensor, attribute: str) -> Tensor:
    """A per-example gradient that a peer left on a parameter; taken off, so that it does not pile up."""
    value: Tensor = getattr(parameter, attribute)
    setattr(parameter, attribute, None)
    return value.detach()


PEERS: dict[str, Callable[[Options], Callable[[], Tensor]]] = {"backpack": _backpack, "opacus": _opacus}
