"""A frozen encoder: part of how an example is read, not of what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.checks import require
from ssl_weighting.protocols import View

PLAIN = "plain"
"""Name of the view that shows an example as it is."""


@dataclass(frozen=True)
class FeatureOptions:
    """Features of a frozen encoder (``model.backbone.frozen: true``), computed once.

    Attributes:
        views: Augmented views of each example that are kept for each of the method's views; a step draws one of them. 0:
            every view is the example as it is, which suits methods that learn from the pool's shape.
        cache: Folder that features are kept in; default: ``ssl_weighting`` in the user's cache folder.
        batch_size: Examples that the encoder is given at once.
        hidden: Units of layers between the features and the linear head, which train with it; none: the head alone.
        resize: Height and width that images are scaled to for the encoder, bicubic, after augmentation: for data sets of
            smaller images than it was trained on; ``null`` for none.
    """

    views: int = 2
    cache: Path | None = None
    batch_size: int = 64
    hidden: tuple[int, ...] = ()
    resize: int | None = None

    def __post_init__(self) -> None:
        require("model.features.views", self.views, self.views >= 0, "must be at least 0")
        require("model.features.batch_size", self.batch_size, self.batch_size >= 1, "must be at least 1")
        fine = all(units >= 1 for units in self.hidden)
        require("model.features.hidden", list(self.hidden), fine, "must be at least 1 each")
        require(
            "model.features.resize",
            self.resize,
            self.resize is None or self.resize >= 8,
            "must be at least 8",
        )


def trained_on(encoder: Encoder, hidden: tuple[int, ...]) -> Backbone:
    """What is trained between a frozen encoder and the head: nothing, or some layers of ``hidden`` units."""
    return MLP(encoder.feature_dim, hidden) if hidden else Precomputed(encoder.feature_dim)


class Encoder(nn.Module):
    """A frozen backbone, whose features are standardised over the pool.

    Args:
        backbone: The network; stays in evaluation mode.
        resize: See :class:`FeatureOptions`.

    Attributes:
        mean: (D,), of the features.
        deviation: (D,), by which they are divided.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: Backbone, resize: int | None = None) -> None:
        super().__init__()
        self.resize = resize
        self.backbone = backbone.requires_grad_(False).eval()
        self.feature_dim = backbone.feature_dim
        self.register_buffer("mean", torch.zeros(self.feature_dim))
        self.register_buffer("deviation", torch.ones(self.feature_dim))

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, inputs: Any) -> Tensor:
        """Features (B, D) float32 of normalised inputs, as the backbone makes them."""
        if self.resize is not None and isinstance(inputs, Tensor) and inputs.dim() == 4:
            inputs = F.interpolate(inputs, size=self.resize, mode="bicubic", antialias=True)
        return cast(Tensor, self.backbone(inputs)).float()

    def forward(self, inputs: Any) -> Tensor:
        """Standardised features (B, D) of normalised inputs."""
        return self.standardised(self.features(inputs))

    def standardised(self, features: Tensor) -> Tensor:
        """Features (B, D) with the pool's mean 0 and deviation 1."""
        return (features - self.mean) / self.deviation

    def of(self, cached: Mapping[str, Tensor], steps: View) -> Tensor:
        """Standardised features (B, D) of a view, one of those that are kept of it, drawn for each example.

        Args:
            cached: (B, K, D) by the view's name.
            steps: The view.
        """
        kept = cached.get(view_name(steps), cached[PLAIN])
        if kept.shape[1] == 1:
            return self.standardised(kept[:, 0])
        drawn = torch.randint(kept.shape[1], (len(kept),), device=kept.device)
        return self.standardised(kept[torch.arange(len(kept), device=kept.device), drawn])


def view_name(steps: View) -> str:
    """What a view does, by names and options of its steps: the same for a copy of it."""
    return " ".join(step if isinstance(step, str) else _described(step) for step in steps) or PLAIN


def _described(step: Any) -> str:
    plain = (bool, int, float, str, tuple, list)
    options = {
        key: value
        for key, value in sorted(getattr(step, "__dict__", {}).items())
        if not key.startswith("_") and key != "training" and isinstance(value, plain)
    }
    return f"{type(step).__name__}({', '.join(f'{key}={value}' for key, value in options.items())})"


def is_cached(raw: Any) -> bool:
    """Whether a batch holds features of a frozen encoder instead of raw inputs."""
    return isinstance(raw, Mapping) and PLAIN in raw
