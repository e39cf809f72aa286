"""Influences of unlabelled examples on the validation loss; one file, one inverse Hessian."""

from ssl_weighting.influence.base import Influence, ThetaStep
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.plugins import import_siblings
from ssl_weighting.protocols import Network

import_siblings(__name__, __path__)  # so that recipes find the classes by their short names

__all__ = ["ExactLastLayer", "Influence", "Network", "ThetaStep"]
