"""A multi-layer perceptron, for points and small vectors."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.protocols import Inputs


class MLP(Backbone):
    """Fully-connected layers with ReLU. Two of 100 units are the paper's net for the synthetic sets (Sec. 4.1).

    Args:
        in_features: Length of the input vectors; images are flattened.
        hidden: Units of every layer.
    """

    def __init__(self, in_features: int = 2, hidden: tuple[int, ...] = (100, 100)) -> None:
        super().__init__()
        sizes = (in_features, *hidden)
        self.layers = nn.Sequential(
            *[nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(sizes)]
        )
        self.feature_dim = sizes[-1]
        self.last_block = rf"layers\.{len(hidden) - 1}\."

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, hidden[-1]) of vectors (B, in_features)."""
        features: Tensor = self.layers(inputs.flatten(1))
        return features
