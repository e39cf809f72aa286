"""Influences of unlabelled examples on the validation loss; one file, one inverse Hessian."""

from ssl_weighting.influence.base import Influence, Network
from ssl_weighting.influence.exact import ExactLastLayer

__all__ = ["ExactLastLayer", "Influence", "Network"]
