"""Finding plug-ins: a new method, solver, data set or backbone is one new file, registered nowhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that jsonargparse knows its classes by their short names.

    Args:
        package: ``__name__`` of the package.
        path: ``__path__`` of the package.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
