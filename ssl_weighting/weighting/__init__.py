"""Λ: its options, its rules, its table and its step."""

from ssl_weighting.weighting.evidence import EvidenceWeights
from ssl_weighting.weighting.options import WeightingOptions
from ssl_weighting.weighting.stats import ExampleStats, Statistics
from ssl_weighting.weighting.weighting import ExampleWeights, Update, Weighting

__all__ = [
    "EvidenceWeights",
    "ExampleStats",
    "ExampleWeights",
    "Statistics",
    "Update",
    "Weighting",
    "WeightingOptions",
]
