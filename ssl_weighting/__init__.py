"""Semi-supervised learning that learns one weight for every unlabelled example while it trains."""

__version__ = "0.1.0"
