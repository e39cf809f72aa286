"""Any model of timm (optional extra ``timm``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.torchvision_model import nearest, warn_of_random
from ssl_weighting.errors import UserError
from ssl_weighting.files import git_lfs_pointer, home_path
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

    Attributes:
        mean: A channel's, by which images were normalised when it was trained; empty where it is not pretrained.
        std: As ``mean``.

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
        if frozen and not pretrained:
            warn_of_random("pretrained=false", "pretrained true")
        folder, source = home_path(name), name
        if (folder / "config.json").is_file():
            source = _local(folder)
        elif not timm.is_model(name):
            raise UserError(
                f"model.backbone.name={name}: no such timm model; {nearest(name, timm.list_models())}"
            )
        try:
            self.model = timm.create_model(source, pretrained=pretrained, num_classes=0, **(arguments or {}))
        except TypeError as error:
            raise UserError(f"model.backbone.arguments={arguments}: {error}") from None
        except Exception as error:  # the libraries beneath raise whatever a damaged file makes of them
            hint = "; pretrained: false trains from scratch" if pretrained else ""
            raise UserError(
                f"model.backbone.name={name}: cannot be made ({' '.join(str(error).split())[:150]}){hint}"
            ) from None
        if pretrained and source != name:
            _check_whole(folder, self.model)
        shown = getattr(self.model, "pretrained_cfg", None) or {} if pretrained else {}
        self.mean, self.std = (tuple(map(float, shown.get(key) or ())) for key in ("mean", "std"))
        self.feature_dim = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        if last_block:
            self.last_block = rf"model\.(?:{last_block})"

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, feature_dim) of images (B, 3, H, W)."""
        features: Tensor = self.model(inputs)
        return features


def _check_whole(folder: Path, model: nn.Module) -> None:
    """Refuse a file that lacks weights, which timm passes over.

    Raises:
        UserError: Naming one of them.
    """
    from safetensors import safe_open

    weights = folder / "model.safetensors"
    if not weights.is_file():
        return
    with safe_open(weights, "pt") as file:
        there = set(file.keys())
    # Not vectors: which norm stands last follows from the arguments.
    missing = [name for name, p in model.named_parameters() if p.dim() > 1 and name not in there]
    if missing:
        raise UserError(
            f"model.backbone.name={folder}: its weights lack {missing[0]} and {len(missing) - 1} more; give a whole "
            "network"
        )


def _local(folder: Path) -> str:
    """A folder as timm names it.

    Raises:
        UserError: If it is another library's, or git-lfs has not fetched it.
    """
    if pointer := git_lfs_pointer(str(folder)):
        raise UserError(
            f"model.backbone.name={folder}: its {pointer} is a pointer of git-lfs, not the file itself; get it with "
            "`git lfs pull`"
        )
    try:
        foreign = "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        foreign = False  # timm says what is wrong with it
    if foreign:
        raise UserError(
            f"model.backbone.name={folder}: is no folder of timm's; give --model.backbone VisionTransformer"
        )
    return f"local-dir:{folder}"
