"""Any classifier of torchvision."""

from __future__ import annotations

import difflib
import warnings
from pickle import UnpicklingError

from torch import nn
from torchvision import models

from ssl_weighting.backbones.module_backbone import ModuleBackbone, linear_names
from ssl_weighting.errors import UserError


class TorchvisionModel(ModuleBackbone):
    """A model of ``torchvision.models`` that ends in a linear head, such as ``resnet18`` or ``vit_b_16``.

    Args:
        name: As in ``torchvision.models.list_models(module=torchvision.models)``.
        weights: Name of pretrained weights, such as ``IMAGENET1K_V1`` or ``DEFAULT``: downloaded once, to
            ``$TORCH_HOME``. They expect ``--data.normalise_by imagenet``. ``null`` draws θ anew.
        last_block: See :class:`~ssl_weighting.backbones.base.Backbone`; default: found by itself.
        frozen: Nothing of it is trained: see :class:`~ssl_weighting.backbones.base.Backbone`.

    Raises:
        UserError: If there is no such model, no such weights, or they cannot be got.
    """

    def __init__(
        self, name: str = "resnet18", weights: str | None = None, last_block: str = "", frozen: bool = False
    ) -> None:
        names = models.list_models(module=models)
        if name not in names:
            raise UserError(f"model.backbone.name={name}: no such torchvision model; {nearest(name, names)}")
        if frozen and weights is None:
            warn_of_random("weights=null", "weights DEFAULT")
        model: nn.Module = models.get_model(name, weights=None)
        if weights is not None:
            _load(model, name, weights)
        heads = [
            head for head in linear_names(model) if model.get_submodule(head).out_features == 1000
        ]  # of ImageNet's classes
        if not heads:
            raise UserError(
                f"model.backbone.name={name}: does not end in a linear layer; take another, such as resnet18"
            )
        super().__init__(model, heads[-1], last_block, frozen)


def nearest(name: str, names: list[str]) -> str:
    """What to say of a name that does not exist."""
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:3])} and others"


def warn_of_random(given: str, mend: str) -> None:
    """Say that a frozen network has no pretrained weights.

    Args:
        given: The option that has left them out, and its value.
        mend: What to type instead.
    """
    warnings.warn(
        f"model.backbone.{given}: a frozen network stays as it is drawn, at random; type --model.backbone.{mend}",
        stacklevel=3,
    )


def _load(model: nn.Module, name: str, weights: str) -> None:
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        raise UserError(
            f"model.backbone.weights={weights}: {name} has {', '.join(known.__members__)}; null for none"
        )
    chosen = known[weights]
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        model.load_state_dict(state)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise UserError(
            f"model.backbone.weights={weights}: cannot be loaded ({' '.join(str(error).split())[:120]}); put "
            f"{chosen.url} into $TORCH_HOME/hub/checkpoints, or set null to train from scratch"
        ) from None
