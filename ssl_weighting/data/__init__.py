"""Data sets, one file each; a new file here is found by itself, and its class by its short name."""

import importlib
import pkgutil

from ssl_weighting.data.cifar10 import Cifar10
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import Batch, ExampleSet, InMemory, LabeledBatch, Source
from ssl_weighting.data.split import Split, make_split, read_split, write_split
from ssl_weighting.data.stream import Stream
from ssl_weighting.data.svhn import Svhn
from ssl_weighting.data.synthetic import Synthetic

__all__ = [
    "Batch",
    "Cifar10",
    "Digits",
    "ExampleSet",
    "InMemory",
    "LabeledBatch",
    "SSLData",
    "Source",
    "Split",
    "Stream",
    "Svhn",
    "Synthetic",
    "make_split",
    "read_split",
    "write_split",
]

# jsonargparse knows a class by its short name only once its module is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
