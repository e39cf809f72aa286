"""The network of an exported folder: raw inputs to class probabilities, and what it is built anew from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_weighting.app.mixture import MixedHead
from ssl_weighting.backbones import Backbone, Classifier
from ssl_weighting.encoder import Encoder, FeatureOptions, divided
from ssl_weighting.errors import UserError

ENCODER = "encoder"
"""Folder, inside an exported one, of a pretrained network as its own library keeps it."""
AS_DRAWN = {"frozen": False, "frozen_layers": 0, "pretrained": False, "weights": None, "lora_rank": None}
"""Arguments of backbones that say where weights come from or which are trained; all of them come from the folder."""


class Network(nn.Module):
    """Prepares, normalises, encodes and classifies a batch: ``Views.plain`` and ``SSLModule.probabilities`` in one.

    Args:
        classifier: The averaged network.
        encoder: A frozen one that sees examples first, or ``None``.
        mean: A channel's, subtracted from inputs; empty for none.
        std: What that is divided by.
        channels_last: Whether images are laid out so, which convolutions prefer.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classifier: Classifier,
        encoder: Encoder | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.classifier, self.encoder, self.channels_last = classifier, encoder, channels_last
        self.register_buffer("mean", torch.tensor(tuple(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)), persistent=False)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def backbone(self) -> Backbone:
        """The one that sees the examples: the encoder's, if there is one."""
        return self.classifier.backbone if self.encoder is None else self.encoder.backbone

    @property
    def kept_apart(self) -> tuple[str, ...]:
        """What the names begin with of weights that a pretrained encoder's own library keeps; none without one."""
        where = "classifier" if self.encoder is None else "encoder"
        return () if pretrained_of(self.backbone) is None else (f"{where}.backbone.encoder.",)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Probabilities (B, C) float32.

        Args:
            inputs: Images or vectors (B, ...), uint8 pixels or floating-point numbers; or word pieces (B, L) int64.
            attention_mask: (B, L) int64, of word pieces.
        """
        dtype = next(self.classifier.parameters()).dtype
        if attention_mask is not None:
            seen: Any = {"input_ids": inputs, "attention_mask": attention_mask}
        else:
            images = self.channels_last and inputs.dim() == 4
            layout = torch.channels_last if images else torch.preserve_format
            seen = self._normalised(inputs).to(dtype, memory_format=layout)
        if self.encoder is not None:
            seen = self.encoder(seen).to(dtype)
        probabilities: Tensor = self.classifier(seen).probabilities().float()
        return probabilities

    def _normalised(self, inputs: Tensor) -> Tensor:
        plain = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        if not len(self.mean):
            return plain
        shape = (-1, *[1] * (inputs.dim() - 2))
        return (plain - self.mean.view(shape)) / self.std.view(shape)


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; its weights lie beside it.

    Attributes:
        backbone: Name of a class of ``ssl_weighting.backbones``.
        arguments: Those of its constructor.
        frozen: Whether it is an encoder, and a small network follows.
        hidden: Units of that network's layers.
        resize: See :class:`~ssl_weighting.encoder.FeatureOptions`.
        num_classes: C.
        symmetric_binary_head: See :class:`~ssl_weighting.backbones.base.Classifier`.
        share: Of the model in a mixture with a probe; ``None`` where nothing was handed over.
        temperatures: Of probe and model.
        mean: See :class:`Network`.
        std: See :class:`Network`.
        channels_last: See :class:`Network`.
    """

    backbone: str
    arguments: Mapping[str, Any]
    frozen: bool
    hidden: tuple[int, ...]
    resize: int | None
    num_classes: int
    symmetric_binary_head: bool
    share: float | None
    temperatures: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool

    def network(self, folder: Path) -> Network:
        """The network, without the weights that ``model.safetensors`` holds.

        Args:
            folder: The exported folder, which holds a pretrained encoder where there is one.

        Raises:
            UserError: If its backbone is none of this program's, or cannot be made.
        """
        known = backbones()
        if self.backbone not in known:
            raise UserError(
                f"{folder / 'model.json'}: backbone={self.backbone}: no network of this version; there are "
                f"{', '.join(sorted(known))}"
            )
        arguments = dict(self.arguments)
        if arguments.get("name") == ENCODER:
            arguments["name"] = str(folder / ENCODER)
        backbone = known[self.backbone](**arguments)
        encoder = None
        if self.frozen:
            backbone.frozen = True
            encoder, backbone = divided(backbone, FeatureOptions(hidden=self.hidden, resize=self.resize))
        classifier = Classifier(backbone, self.num_classes, self.symmetric_binary_head)
        if self.share is not None:
            own, width = classifier.heads["classifier"], backbone.feature_dim
            weight, bias = torch.zeros(self.num_classes, width), torch.zeros(self.num_classes)
            classifier.heads["classifier"] = MixedHead(own, weight, bias, self.share, self.temperatures)
        return Network(classifier, encoder, self.mean, self.std, self.channels_last)


def backbones() -> dict[str, type[Backbone]]:
    """The networks of this program that are made from plain values, by name.

    One of a user's own, or ``ModuleBackbone`` around one, is code, which a folder does not hold.
    """
    found: dict[str, type[Backbone]] = {}
    waiting = Backbone.__subclasses__()
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__.startswith("ssl_weighting.backbones.") and one.__name__ != "ModuleBackbone":
            found[one.__name__] = one
    return found


def plain_arguments(backbone: Backbone, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that make a backbone's structure again from an exported folder alone.

    Args:
        backbone: As it was made.
        given: The arguments that it was made with.
    """
    arguments = {key: AS_DRAWN.get(key, value) for key, value in given.items()}
    name = str(given.get("name", ""))
    if pretrained_of(backbone) is not None or os.path.isdir(os.path.expanduser(name)):
        arguments["name"] = ENCODER
    return arguments


def pretrained_of(backbone: Backbone) -> Any:
    """The network of ``transformers`` inside a backbone, which writes its own files; ``None`` if there is none."""
    inner = getattr(backbone, "encoder", None)
    return inner if hasattr(inner, "save_pretrained") else None


def merge_lora(network: nn.Module) -> None:
    """Add what LoRA trained, W + 2 B A, to the weights themselves, so that an ordinary network is left."""
    for name, layer in [*network.named_modules()]:
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            cast(Any, layer).merge()
            network.set_submodule(name, cast(Any, layer).get_base_layer())


@contextlib.contextmanager
def for_a_graph(network: Network, side: tuple[int, ...]) -> Iterator[None]:
    """Make a network do the same to all batches while a graph is made of it.

    Texts are not sorted into groups by their length, and a resize of images is two matrix products, which every runtime
    has.

    Args:
        network: Is put back afterwards.
        side: Height and width of its images, for a resize.
    """
    backbone, encoder = network.backbone, network.encoder
    regroups, resize = backbone.regroups, None if encoder is None else encoder.resize
    backbone.regroups = False
    if encoder is not None and resize is not None:
        encoder.resize, encoder.backbone = None, _Resized(encoder.backbone, side, resize)
    try:
        yield
    finally:
        backbone.regroups = regroups
        if encoder is not None:
            encoder.resize, encoder.backbone = resize, backbone


class _Resized(Backbone):
    """A backbone after a bicubic resize, which is linear: R_h · image · R_wᵀ."""

    rows: Tensor
    columns: Tensor

    def __init__(self, backbone: Backbone, side: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.backbone, self.feature_dim = backbone, backbone.feature_dim
        for name, length in zip(("rows", "columns"), side, strict=True):
            self.register_buffer(name, _resize_matrix(length, size))

    def forward(self, inputs: Tensor) -> Tensor:
        resized = self.rows.to(inputs.dtype) @ inputs @ self.columns.to(inputs.dtype).T
        features: Tensor = self.backbone(resized)
        return features


def _resize_matrix(length: int, size: int) -> Tensor:
    """(size, length): what the encoder's resize does to a line of pixels, of each pixel alone."""
    columns = torch.eye(length)[None, None]
    resized = nn.functional.interpolate(columns, size=(size, length), mode="bicubic", antialias=True)
    return resized[0, 0]
