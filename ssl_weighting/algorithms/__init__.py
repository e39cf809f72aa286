"""SSL methods; one file, one method."""

from ssl_weighting.algorithms.base import Algorithm
from ssl_weighting.plugins import import_siblings

import_siblings(__name__, __path__)  # so that recipes find the classes by their short names

__all__ = ["Algorithm"]
