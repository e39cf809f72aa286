"""Pretrained image encoders of the ``transformers`` library."""

from __future__ import annotations

import inspect
import os
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.pretrained import (
    add_lora,
    freeze_first_layers,
    last_layer,
    load_config,
    load_encoder,
    preprocessing,
)
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs

PIXELS = "pixel_values"
"""Name of what a network that reads images takes, in ``transformers``."""


class VisionTransformer(Backbone):
    """DINOv2, DINOv3, ViT, the image tower of CLIP or SigLIP, or another that ``transformers.AutoModel`` loads.

    Weights are read from safetensors files only, and no code that comes with a model is run. Takes images (B, 3, H, W) of
    any size that holds a patch: where positions are learned for one size, they are interpolated for others.

    Features are what each model pools an image to: DINOv2, DINOv3 and CLIP the last hidden state of the class token,
    normalised (CLIP's projection into the space of texts is left out); ViT tanh(W h₀ + b) of it, where W and b are
    among the weights, otherwise h₀; SigLIP its attention over all patches; a network without any of these the mean of
    the last hidden states.

    Args:
        name: A name on the Hugging Face hub, such as ``facebook/dinov2-small``, or a folder with ``config.json`` and
            ``model.safetensors``.
        frozen: Nothing of it is trained: see :class:`~ssl_weighting.backbones.base.Backbone`.
        frozen_layers: So many of the first layers, and the embeddings, keep their pretrained weights.
        last_block: See :class:`~ssl_weighting.backbones.base.Backbone`; default: the last layer and what follows it.
        lora_rank: Train of its layers additions of this rank alone (LoRA, Hu et al. 2022), which needs ``peft``: ``pip
            install 'ssl-weighting[peft]'``. ``null`` trains all weights.

    Attributes:
        mean: A channel's, by which images were normalised when it was trained, from ``preprocessor_config.json``; empty
            where that says nothing.
        std: As ``mean``.

    Raises:
        UserError: If there is no such network, neither in a folder nor on the hub, or it reads no images.
    """

    def __init__(
        self,
        name: str = "facebook/dinov2-small",
        frozen: bool = False,
        frozen_layers: int = 0,
        last_block: str = "",
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        config = _tower(load_config(name, "image encoder"), name)
        self.encoder: Any
        self.encoder, missing = load_encoder(
            name, what="image encoder", optional=("pooler", "mask_token"), config=config
        )
        if "pooler" in missing:
            self.encoder.pooler = None  # one that nobody trained
        for module in self.encoder.modules():
            if isinstance(getattr(module, "mask_token", None), nn.Parameter):
                module.mask_token = None  # of pretraining; it would have no gradient
        sizes = getattr(config, "hidden_sizes", None)
        self.feature_dim = int(sizes[-1] if sizes else config.hidden_size)
        self.image_size = _side(getattr(config, "image_size", None))
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters
        said = preprocessing(name)
        self.mean, self.std = (tuple(map(float, said.get(key) or ())) for key in ("image_mean", "image_std"))
        self.regroups = not any(isinstance(module, _BatchNorm) for module in self.encoder.modules())
        freeze_first_layers(self.encoder, frozen_layers)
        add_lora(self.encoder, lora_rank, frozen_layers, frozen)
        self.last_block = rf"encoder\.(?:{last_block})" if last_block else last_layer(self.encoder)
        self.train()  # from_pretrained leaves evaluation mode, and Lightning keeps modes as they are

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, feature_dim) of images (B, 3, H, W)."""
        arguments = {}
        if self.interpolates and tuple(inputs.shape[-2:]) != self.image_size:
            arguments["interpolate_pos_encoding"] = True
        output = self.encoder(**{PIXELS: inputs}, **arguments)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            features: Tensor = pooled.flatten(1)
            return features
        hidden: Tensor = output.last_hidden_state
        if hidden.dim() == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if hasattr(self.encoder, "pooler") else hidden.mean(1)


def _tower(config: Any, name: str) -> Any:
    """The part of a configuration that reads images.

    Raises:
        UserError: If there is none.
    """
    from transformers import MODEL_MAPPING

    config = getattr(config, "vision_config", config)
    kind = MODEL_MAPPING.get(type(config), None)
    kinds = kind if isinstance(kind, (list, tuple)) else (kind,)
    if not any(getattr(one, "main_input_name", None) == PIXELS for one in kinds):
        raise UserError(
            f"model.backbone.name={os.path.expanduser(name)}: a {config.model_type}, which reads no images; give an "
            "image encoder, such as facebook/dinov2-small, or --model.backbone Transformer for texts"
        )
    return config


def _side(size: Any) -> tuple[int, int] | None:
    """Height and width of a configuration's images."""
    if isinstance(size, int):
        return (size, size)
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else None
