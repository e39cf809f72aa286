"""A frozen encoder: part of how an example is read, not of what is trained."""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.checks import require
from ssl_weighting.distributed import is_first_process
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


def divided(backbone: Backbone, options: FeatureOptions) -> tuple[Encoder | None, Backbone]:
    """A frozen backbone as encoder, and what is trained between it and the head; or no encoder, and the backbone.

    Args:
        backbone: As it was given.
        options: How features are kept; said to have no effect where the backbone is not frozen.
    """
    if not backbone.frozen:
        if options != FeatureOptions() and is_first_process():
            warnings.warn(
                "model.features: has no effect, for model.backbone is trained; type --model.backbone.frozen true, or "
                "leave it out",
                stacklevel=2,
            )
        return None, backbone
    encoder = Encoder(backbone, options.resize)
    width = encoder.feature_dim
    return encoder, MLP(width, options.hidden) if options.hidden else Precomputed(width)


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
        self.eval()

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
            cached: (B, K, D) by the view's name; of one that stands alone every view is the example as it is.
            steps: The view.
        """
        kept = cached[PLAIN] if len(cached) == 1 else cached[view_name(steps)]
        if kept.shape[1] == 1:
            return self.standardised(kept[:, 0])
        drawn = torch.randint(kept.shape[1], (len(kept),), device=kept.device)
        return self.standardised(kept[torch.arange(len(kept), device=kept.device), drawn])


def view_name(steps: View) -> str:
    """What a view does, by names and options of its steps: the same for a copy of it."""
    return " ".join(step if isinstance(step, str) else _described(step) for step in steps) or PLAIN


LIBRARIES = ("torch", "torchvision", "timm", "transformers", "ssl_weighting")
"""Packages whose classes compute the same as long as their options are the same."""

OF_FILES = ("name_or_path", "_name_or_path", "transformers_version")
"""Attributes that say where a network was read from."""


def fingerprint(network: nn.Module) -> str:
    """sha256 over all that a network's output follows from: its layers, their options, and its state.

    Of classes that are the user's own, it holds the source too, so that an edited ``forward`` is another network.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        own = type(module)
        digest.update(f"{name} {own.__module__}.{own.__qualname__} {_options(module)}\n".encode())
        digest.update(_without_addresses(module.extra_repr()).encode())
    for own in sorted({type(module) for module in network.modules()}, key=lambda own: own.__qualname__):
        digest.update(_source(own).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(own: type) -> str:
    if own.__module__.partition(".")[0] in LIBRARIES:
        return ""
    try:
        return inspect.getsource(own)
    except (OSError, TypeError):  # typed at a prompt
        return ""


def _described(step: Any) -> str:
    if isinstance(step, partial):
        return f"partial({', '.join(map(_described, (step.func, *step.args)))}, {step.keywords})"
    if inspect.isroutine(step):
        line = getattr(getattr(step, "__code__", None), "co_firstlineno", "")
        return f"{step.__module__}.{step.__qualname__}:{line}"
    if isinstance(step, (bool, int, float, str)):
        return repr(step)
    parts = [_options(step)]
    if isinstance(step, nn.Module):
        parts += map(_described, step.children())
    return f"{type(step).__name__}({', '.join(filter(None, parts))})"


def _options(thing: Any) -> str:
    """Attributes that are plain values, functions, or the configuration of a network of ``transformers``."""
    plain = (bool, int, float, str, tuple, list)
    found = []
    for key, value in sorted(getattr(thing, "__dict__", {}).items()):
        if key.startswith("_") or key in ("training", *OF_FILES):
            continue
        if isinstance(value, plain):
            found.append(f"{key}={_without_addresses(str(value))}")
        elif inspect.isroutine(value):
            found.append(f"{key}={value.__qualname__}")
        elif key == "config" and hasattr(value, "to_dict"):
            found.append(str(sorted((k, str(v)) for k, v in value.to_dict().items() if k not in OF_FILES)))
    return ", ".join(found)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def is_cached(raw: Any) -> bool:
    """Whether a batch holds features of a frozen encoder instead of raw inputs."""
    return isinstance(raw, Mapping) and PLAIN in raw
