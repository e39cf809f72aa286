"""Linear heads on features that stay: fewer axes, and an optimiser that is there in some tens of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNKNOWNS = 6000
"""Most unknowns of a Hessian that is factorised at every Λ step: 288 MB, about a second."""


@dataclass(frozen=True)
class Axes:
    """The principal axes of features, and the mean that they are measured from.

    Attributes:
        mean: (D,).
        directions: (D, d), orthonormal: lengths and angles, and so penalties, stay as they are but for what is cut off.
    """

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, count: int) -> Axes:
        """The ``count`` axes of features (n, D) along which they vary most; all where there are no more."""
        mean = features.mean(0)
        centred = torch.from_numpy(np.ascontiguousarray(features - mean))
        wide = centred.shape[1] > len(centred)
        gram = centred @ centred.T if wide else centred.T @ centred
        count = min(count, *centred.shape)
        _, vectors = torch.linalg.eigh(gram.double())
        kept = vectors[:, -count:].flip(1)
        if wide:  # of the small side, carried over
            kept = torch.linalg.qr(centred.double().T @ kept).Q
        return cls(mean, kept.float().numpy())

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Coordinates (m, d), float32, of features (m, D)."""
        return np.ascontiguousarray((features - self.mean) @ self.directions, np.float32)


class BoundedNewton(torch.optim.SGD):
    """Gradient descent with momentum, its steps shaped by an upper bound of a linear head's Hessian.

    Softmax's curvature is at most 1/2 (Böhning 1992, "Multinomial logistic regression algorithm"), so that the
    Hessian is at most H = (Σ_labelled + b Σ_pool)/2 + δ whatever the head predicts and however weights λ ≤ b lie. H⁻¹ is
    formed once; steps along it do not overshoot, whatever the scale of the features. Weights and biases are shaped apart:
    what couples them is small where features are centred.

    Args:
        parameters: Of the head: weights (R, d) and biases (R,).
        labeled: (n, d), features of the labelled examples.
        pool: (m, d), those of the pool.
        decay: δ, of weights and biases.
        bound: b, largest weight of an example of the pool.
        scale: What the step is multiplied by; 1/2 where one output makes two logits.
    """

    def __init__(
        self, parameters: Any, labeled: Tensor, pool: Tensor, decay: float, bound: float, scale: float
    ) -> None:
        super().__init__(parameters, lr=scale, momentum=0.9, nesterov=True)
        for group in self.param_groups:
            group["weight_decay"] = 0.0  # it is part of what is shaped
        self.decay = decay
        labeled, pool = labeled.double(), pool.double()
        both = (labeled.T @ labeled / len(labeled) + bound * (pool.T @ pool) / len(pool)) / 2
        self.shape = torch.linalg.inv(both + decay * torch.eye(len(both)).double()).float()
        self.bias = 1 / ((1 + bound) / 2 + decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step."""
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            pull = parameter.grad + self.decay * parameter
            if parameter.dim() == 2 and parameter.shape[1] == len(self.shape):
                parameter.grad = pull @ self.shape
            else:
                parameter.grad = pull * self.bias
        return super().step(closure)
