"""Forward mode: the directional derivative of the logits in one pass, with no backward pass and no graph.

PyTorch's dual tensors carry (x, ẋ) through any operation. The three kinds of layer that take nearly all the
time of a convolutional net have formulas of their own here, because PyTorch composes batch norm's from some
ten passes over memory and allocates where it could accumulate:

    convolution, linear   y = W∗x + b,  ẏ = W∗ẋ + (V∗x + b̊)          three products; two at the first layer
    batch norm (eval)     y = s x + t,  ẏ = s ẋ + (ṡ x + ṫ),  s = γ/√(σ²+ε)
    (leaky) ReLU          y = max(x, a x),  ẏ = (1 or a) ẋ

So the floor is three forward passes' worth of products, the cost of one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ssl_weighting.errors import UserError
from ssl_weighting.influence.evaluation import ByName, fast_layout, logits_at
from ssl_weighting.protocols import Inputs


class ForwardModeError(UserError):
    """An operation of the network has no forward derivative."""


def logits_and_tangents(
    network: nn.Module,
    parameters: ByName,
    direction: ByName,
    inputs: Inputs,
    head: str,
) -> tuple[Tensor, Tensor]:
    """Logits z(θ) and their derivative along v, dz(θ + εv)/dε, each (B, C).

    Call within ``plain_evaluation`` and ``torch.no_grad``.

    Args:
        network: ``network(inputs, head) -> (inputs, features, logits)``.
        parameters: θ in scope.
        direction: v.
        inputs: A batch.
        head: Which head's logits.

    Raises:
        ForwardModeError: If an operation has no forward derivative; names it.
    """
    inputs = pytree.tree_map(fast_layout, inputs)
    try:
        with forward_ad.dual_level():
            duals = {
                name: _pack(fast_layout(p), fast_layout(direction[name])) for name, p in parameters.items()
            }
            with _ClosedForms():
                logits = logits_at(network, duals, inputs, head)
            primal, tangent = _unpack(logits)
    except (NotImplementedError, RuntimeError) as error:
        message = str(error)
        if "forward AD" not in message and "jvp" not in message:
            raise
        raise ForwardModeError(
            f"model.influence.engine='jvp': {message.splitlines()[0]} Choose engine 'activation' or 'vmap'"
        ) from None
    return primal, torch.zeros_like(primal) if tangent is None else tangent


class _ClosedForms(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent


def _pack(primal: Tensor, tangent: Tensor | None) -> Tensor:
    if tangent is None:
        return primal
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def _affine(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule of a layer that is linear in its input and in its parameters."""

    def rule(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        x, dx = _unpack(input)
        w, dw = _unpack(weight)
        b, db = (None, None) if bias is None else _unpack(bias)
        out = operation(x, w, b, *args, **kwargs)
        tangent = None
        if dw is not None:
            tangent = operation(x, dw, db, *args, **kwargs)
        elif db is not None:
            shape = db.shape if operation is F.linear else (-1, *(1,) * (out.dim() - 2))
            tangent = db.view(shape).expand_as(out).clone()
        if dx is not None:
            through = operation(dx, w, None, *args, **kwargs)
            tangent = through if tangent is None else through.add_(tangent)
        return _pack(out, tangent)

    return rule


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None or weight is None or bias is None:
        return None
    x, dx = _unpack(input)
    (w, dw), (b, db) = _unpack(weight), _unpack(bias)
    shape = (-1, *(1,) * (x.dim() - 2))
    factor = (running_var + eps).rsqrt()
    scale = w * factor
    out = torch.addcmul((b - running_mean * scale).view(shape), x, scale.view(shape))
    tangent = None
    if dw is not None or db is not None:
        slope = torch.zeros_like(scale) if dw is None else dw * factor
        shift = -running_mean * slope if db is None else db - running_mean * slope
        tangent = torch.addcmul(shift.view(shape), x, slope.view(shape))
    if dx is not None:
        through = scale.view(shape)
        tangent = dx * through if tangent is None else tangent.addcmul_(dx, through)
    return _pack(out, tangent)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    x, dx = _unpack(input)
    if inplace or dx is None:
        return None
    tangent = torch.ops.aten.leaky_relu_backward(dx, x, negative_slope, False)
    return _pack(F.leaky_relu(x, negative_slope), tangent)


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    x, dx = _unpack(input)
    if inplace or dx is None:
        return None
    out = F.relu(x)
    return _pack(out, torch.ops.aten.threshold_backward(dx, out, 0))


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _affine(F.linear),
    F.conv1d: _affine(F.conv1d),
    F.conv2d: _affine(F.conv2d),
    F.conv3d: _affine(F.conv3d),
    F.batch_norm: _batch_norm,
    F.leaky_relu: _leaky_relu,
    F.relu: _relu,
}
