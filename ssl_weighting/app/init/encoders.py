"""The best pretrained encoder that is to be had: in a folder, on this machine, or on a hub that answers."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from ssl_weighting.app.choices import classes
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.errors import UserError

IMAGE_ENCODERS = ("facebook/dinov2-small", "resnet18")
"""What is looked for where none is named, the better one first: on the Hugging Face hub; of torchvision."""
SIDE = {"cpu": 112, "cuda": 224}
"""Height and width of images for a frozen encoder: whole patches of 14 and 16 pixels."""


class Found(NamedTuple):
    """A frozen encoder.

    Attributes:
        backbone: The network.
        written: Its class and arguments, as they stand in a recipe.
    """

    backbone: Backbone
    written: tuple[str, dict[str, Any]]


def image_encoder(given: str | None) -> Found | None:
    """A frozen encoder of images.

    Args:
        given: Folder, name on the Hugging Face hub, name of torchvision's or of timm's; ``None`` for the best that is to
            be had.

    Returns:
        ``None`` if none was given and none is to be had.

    Raises:
        UserError: If the one that was given cannot be loaded.
    """
    if given is not None:
        return _made(*_named(given))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a network that swallows everything would be waited for without end
    try:
        for name in IMAGE_ENCODERS:
            if "/" in name and not on_hub(name):
                continue
            with suppress(UserError):  # not to be had here
                return _made(*_named(name))
    finally:
        socket.setdefaulttimeout(before)
    return None


def on_hub(name: str) -> bool:
    """Whether an encoder lies in the Hugging Face cache, or the hub answers within ten seconds that it has it."""
    import huggingface_hub  # slow to import

    if huggingface_hub.try_to_load_from_cache(name, "config.json") is not None:
        return True
    try:
        huggingface_hub.HfApi().model_info(name, timeout=10)
    except Exception:  # its client's kinds of a missing network change from version to version
        return False
    return True


def normalisation(encoder: Backbone) -> str:
    """``range`` or ``imagenet``: which of the two is nearer to what an image encoder was trained with."""
    mean = tuple(getattr(encoder, "mean", ()))
    return "range" if mean and abs(mean[2] - 0.5) < abs(mean[2] - 0.406) else "imagenet"


def _named(name: str) -> tuple[str, dict[str, Any]]:
    """Class and arguments of an encoder by its name or folder."""
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"--encoder {name}: its config.json cannot be read ({type(error).__name__}); give a folder with "
                "config.json and model.safetensors"
            ) from None
        timm = "architecture" in config
        arguments = {"name": str(folder.resolve()), **({"pretrained": True} if timm else {})}
        return ("TimmModel" if timm else "VisionTransformer"), arguments
    if name.startswith(("/", ".", "~")):
        raise UserError(f"--encoder {name}: no such folder")
    if "/" in name:
        return "VisionTransformer", {"name": name}
    from torchvision import models

    if name in models.list_models(module=models):
        return "TorchvisionModel", {"name": name, "weights": "DEFAULT"}
    return "TimmModel", {"name": name, "pretrained": True}


def _made(kind: str, arguments: dict[str, Any]) -> Found:
    arguments = {**arguments, "frozen": True}
    try:
        backbone = classes(Backbone)[kind](**arguments)
    except UserError as error:
        message = str(error).replace("model.backbone.name=", "--encoder ")
        raise UserError(
            message.replace("model.backbone.weights=DEFAULT", f"--encoder {arguments['name']}")
        ) from None
    return Found(cast(Backbone, backbone), (kind, arguments))
