"""The plug-ins of the package, found and not listed, so that a new one is tested as it is added."""

import inspect

import pytest

from ssl_weighting.algorithms import Algorithm
from ssl_weighting.influence import Influence


def subclasses(kind: type) -> list[type]:
    """The package's own classes of a kind that can be made, by name."""

    def below(cls: type) -> set[type]:
        return {c for s in cls.__subclasses__() for c in {s} | below(s)}

    return sorted(
        (c for c in below(kind) if c.__module__.startswith("ssl_weighting.") and not inspect.isabstract(c)),
        key=lambda c: c.__name__,
    )


METHODS = subclasses(Algorithm)
SOLVERS = subclasses(Influence)

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
