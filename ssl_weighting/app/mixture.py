"""Which of two classifiers to believe, and how far: told by held-out predictions of labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ssl_weighting.probe import calibrated, cooled, cross_entropy

SHARES = tuple(np.linspace(0, 1, 11))


@dataclass(frozen=True)
class Mixture:
    """(1 − s) · probe at its temperature + s · model with the pool at its own.

    Attributes:
        share: s.
        temperatures: Of the probe and of the model with the pool.
    """

    share: float
    temperatures: tuple[float, float]

    @classmethod
    def of(cls, probe: np.ndarray, pool: np.ndarray, labels: np.ndarray) -> Mixture:
        """The mixture of least loss on held-out predictions, both (n, C), of labelled examples; (n,) int64 labels.

        Each is calibrated first: a model that is right more often may have the larger loss for being too sure, and of
        twenty labels one such decides.
        """
        temperatures = calibrated(probe, labels), calibrated(pool, labels)
        first, second = cooled(probe, temperatures[0]), cooled(pool, temperatures[1])

        def cost(share: float) -> float:
            mixed = (1 - share) * first + share * second
            return float(cross_entropy(mixed, labels).mean())

        return cls(float(min(SHARES, key=cost)), temperatures)

    def __call__(self, probe: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Probabilities (n, C) of both, mixed."""
        first, second = self.temperatures
        return (1 - self.share) * cooled(probe, first) + self.share * cooled(pool, second)


class MixedHead(nn.Module):
    """A model's head and a probe's together, as a :class:`Mixture` says; with a share of 0, the probe as it is.

    Args:
        own: The model's head, features (B, D) to logits (B, C).
        weight: (C, D) of the probe.
        bias: (C,) of the probe.
        share: See :class:`Mixture`.
        temperatures: See :class:`Mixture`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, own: nn.Module, weight: Tensor, bias: Tensor, share: float, temperatures: Sequence[float]
    ) -> None:
        super().__init__()
        self.own, self.share = own, share
        self.temperatures = tuple(temperatures) if share else (1.0, 1.0)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logarithms of the mixed probabilities, (B, C)."""
        logits = (nn.functional.linear(features, self.weight, self.bias), self.own(features))
        probe, pool = (x.double().div(t).softmax(-1) for x, t in zip(logits, self.temperatures, strict=True))
        mixed = (1 - self.share) * probe + self.share * pool
        return torch.log(mixed.clamp(min=1e-30)).to(features.dtype)
