"""The paper's per-example products (Sec. 3.1, App. B): backward to the activations, and no further.

For a layer z = f(a; θ_l) that is linear in its parameters, the example's share of the product is

    ∇_{θ_l} ℓ_uᵀ v_l = ⟨∂ℓ/∂z_u, f(a_u; v_l)⟩,

the layer applied once more, to the activations it saw, with v for parameters: nothing is unfolded and no
gradient of any parameter is computed, per example or summed. The dot product is taken at the moment the
backward pass reaches the layer, whose activations are then let go. Forward, backward to the activations and
the second application are three forward passes' worth of products, the cost of one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ssl_weighting.errors import UserError
from ssl_weighting.influence.evaluation import ByName, fast_layout, logits_at
from ssl_weighting.influence.scope import readable

if TYPE_CHECKING:
    from ssl_weighting.influence.products import Examples

LINEAR_IN_PARAMETERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.Embedding,
)
_FORWARDS = {kind.forward for kind in LINEAR_IN_PARAMETERS}


class UnsupportedLayerError(UserError):
    """A layer that is not known to be linear in its parameters."""


@torch.enable_grad()
def activation_products(
    network: nn.Module, parameters: ByName, direction: ByName, examples: Examples
) -> Tensor:
    """∇ℓ_uᵀ v of some examples; see the module.

    Args:
        network: ``network(inputs, head) -> (inputs, features, logits)``.
        parameters: θ in scope.
        direction: v.
        examples: A chunk of one term's examples.

    Returns:
        (n,).

    Raises:
        UnsupportedLayerError: For a parameter in scope whose layer is unknown; names both.
    """
    layers = _layers(network, parameters, direction, examples.head)
    taps = _Taps(next(iter(parameters.values())), len(examples.target))
    handles = [
        layer.register_forward_hook(taps.hook(name, layer, vector), with_kwargs=True)
        for name, (layer, vector) in layers.items()
    ]
    try:
        constants = {name: fast_layout(p.detach()) for name, p in parameters.items()}
        inputs = pytree.tree_map(fast_layout, examples.inputs)
        logits = logits_at(network, constants, inputs, examples.head)
    finally:
        for handle in handles:
            handle.remove()
    for name, (layer, _) in layers.items():
        if name not in taps.reached:
            raise UnsupportedLayerError(
                f"model.influence.engine='activation': the parameters of {readable(name)} ({type(layer).__name__}) "
                "are used without calling the layer; choose engine 'jvp'"
            )
    if not layers:  # another head than the scope's
        return taps.products
    gradient = examples.distance.gradient(logits.detach(), examples.target)
    torch.autograd.backward(logits, gradient, inputs=[taps.anchor])
    return taps.products


class _Taps:
    """Sees every layer's input on the way forward and its output's gradient on the way back."""

    def __init__(self, like: Tensor, n: int) -> None:
        self.products = like.new_zeros(n)
        self.anchor = like.new_zeros(()).requires_grad_()
        self.reached: set[str] = set()

    def hook(self, name: str, layer: nn.Module, vector: dict[str, Tensor]) -> Callable[..., Tensor]:
        def tap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            self.reached.add(name)
            if isinstance(layer, nn.Embedding) and len(out) == 1:
                out = out.expand(len(self.products), *out.shape[1:])  # positions, the same for every example
            if len(out) != len(self.products) or (isinstance(layer, nn.Embedding) and args[0].dim() == 1):
                raise UnsupportedLayerError(
                    f"model.influence.engine='activation': the output {tuple(out.shape)} of {readable(name)} has "
                    "no axis of examples in front; choose engine 'jvp'"
                )
            if not out.requires_grad:
                out = out + self.anchor  # the first layer: from here on there is a graph
            kept: list[Any] = [tuple(a.detach() if isinstance(a, Tensor) else a for a in args)]
            versions = [a._version for a in args if isinstance(a, Tensor)]

            @torch.no_grad()
            def arrived(gradient: Tensor) -> None:
                (activations,) = kept
                kept.clear()
                if versions != [a._version for a in activations if isinstance(a, Tensor)]:
                    raise UnsupportedLayerError(
                        f"model.influence.engine='activation': the input of {readable(name)} is overwritten in "
                        "place; choose engine 'jvp'"
                    )
                again = functional_call(layer, vector, activations, kwargs)
                self.products += (again * gradient).reshape(len(self.products), -1).sum(-1)

            out.register_hook(arrived)  # type: ignore[no-untyped-call]
            return out

        return tap


def _layers(
    network: nn.Module, parameters: ByName, direction: ByName, head: str
) -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """The layers that own the parameters in scope, each with its part of v (0 for what is not in scope)."""
    names = {id(p): name for name, p in network.named_parameters()}
    layers = {}
    for name, layer in network.named_modules():
        own = {key: names[id(p)] for key, p in layer.named_parameters(recurse=False)}
        if not any(full in parameters for full in own.values()):
            continue
        is_head = readable(name).startswith("heads.")
        if is_head and readable(name) != f"heads.{head}":
            continue
        linear = type(layer).forward in _FORWARDS or is_head
        if not linear:
            raise UnsupportedLayerError(
                f"model.influence.engine='activation': does not know the layer {readable(name)} "
                f"({type(layer).__name__}); choose engine 'jvp' or leave the layer out of the scope"
            )
        layers[name] = (
            layer,
            {
                key: fast_layout(direction[full])
                if full in parameters
                else torch.zeros_like(network.get_parameter(full))
                for key, full in own.items()
            },
        )
    return layers
