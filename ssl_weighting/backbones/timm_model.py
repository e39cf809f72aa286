"""Any model of timm (optional extra ``timm``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.torchvision_model import nearest
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path
from ssl_weighting.protocols import Inputs


class TimmModel(Backbone):
    """A model of ``timm`` without its head: the features are what the head is given.

    Args:
        name: As in ``timm.list_models()``, with a tag for certain weights: ``resnet18.a1_in1k``; or a folder with
            ``config.json`` and ``model.safetensors``, as timm writes it.
        pretrained: Load the pretrained weights, downloaded once. Most expect ``--data.normalise_by imagenet``.
        arguments: Further arguments of ``timm.create_model``, such as ``img_size: 64`` for a transformer.
        last_block: See :class:`~ssl_weighting.backbones.base.Backbone`; default: found by itself.
        frozen: Nothing of it is trained: see :class:`~ssl_weighting.backbones.base.Backbone`.

    Raises:
        UserError: If timm is not installed, there is no such model, or its weights cannot be got.
    """

    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool = False,
        arguments: dict[str, Any] | None = None,
        last_block: str = "",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        try:
            import timm
        except ImportError:
            raise UserError(
                f"model.backbone.name={name}: timm is not installed; pip install 'ssl-weighting[timm]'"
            ) from None
        folder = home_path(name)
        if (folder / "config.json").is_file():
            name = f"local-dir:{folder}"
        elif not timm.is_model(name):
            raise UserError(
                f"model.backbone.name={name}: no such timm model; {nearest(name, timm.list_models())}"
            )
        try:
            self.model = timm.create_model(name, pretrained=pretrained, num_classes=0, **(arguments or {}))
        except TypeError as error:
            raise UserError(f"model.backbone.arguments={arguments}: {error}") from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            hint = "; pretrained: false trains from scratch" if pretrained else ""
            raise UserError(
                f"model.backbone.name={name}: cannot be made ({' '.join(str(error).split())[:150]}){hint}"
            ) from None
        self.feature_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        if last_block:
            self.last_block = rf"model\.(?:{last_block})"

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, feature_dim) of images (B, 3, H, W)."""
        features: Tensor = self.model(inputs)
        return features
