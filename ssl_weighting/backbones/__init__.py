"""Networks, each a feature extractor; the linear head is added by :class:`Classifier`."""

from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.plugins import import_siblings

import_siblings(__name__, __path__)  # so that recipes find the classes by their short names

__all__ = ["Backbone", "Classifier"]
