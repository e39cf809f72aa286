"""The classes that an option takes by name, and the options that they have."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer

# The packages of plug-ins, whole: jsonargparse finds a class by its short name once it is imported.
from ssl_weighting.algorithms import Algorithm
from ssl_weighting.backbones import Backbone
from ssl_weighting.data import SSLData
from ssl_weighting.influence import Influence

PLUGINS: dict[str, type] = {
    "data": SSLData,
    "model.algorithm": Algorithm,
    "model.backbone": Backbone,
    "model.influence": Influence,
    "model.theta.optimizer": Optimizer,
    "model.labeled_augmentation": nn.Module,
    "trainer.logger": Logger,
    "trainer.callbacks": Callback,
}
"""Options that take a class, and its base."""

AUGMENTATIONS = "ssl_weighting.augment"
INTERNAL = ("DummyLogger", "MetricsCsv", "Lines", "Bar", "TensorData", "MaskedAdam", "LBFGS")
"""Not for the command line: they need tensors, closures or loops that a text cannot give."""


def with_subclasses(cls: type) -> list[type]:
    """A class, and all that are imported and derived from it."""
    children: list[type] = cls.__subclasses__()
    return [cls, *(found for child in children for found in with_subclasses(child))]


def classes(base: type) -> dict[str, type]:
    """Classes that can be named by their short name where ``base`` is asked for.

    Of torch's modules, which are thousands with those of other libraries, our own augmentations.
    """
    found = {}
    for cls in with_subclasses(base):
        if inspect.isabstract(cls) or cls.__name__.startswith(("_", "Lightning")) or cls.__name__ in INTERNAL:
            continue
        if cls is base or (base is nn.Module and not cls.__module__.startswith(AUGMENTATIONS)):
            continue
        found[cls.__name__] = cls
    return dict(sorted(found.items()))


def prefix_of(cls: type) -> str:
    """The option that takes a class, ``model.influence`` for a solver; empty if there is none."""
    return next((key for key, base in PLUGINS.items() if issubclass(cls, base)), "")


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """What a class can be given, its parents' arguments among them where it passes them on."""
    found: dict[str, inspect.Parameter] = {}
    for part in cls.__mro__[:-1]:
        if "__init__" not in vars(part):
            continue
        own: Any = inspect.signature(part.__init__).parameters  # type: ignore[misc]
        for name, parameter in list(own.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return found
