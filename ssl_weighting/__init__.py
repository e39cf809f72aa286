"""Semi-supervised learning that learns one weight for every unlabelled example while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_weighting.app.estimator import SSLClassifier
    from ssl_weighting.app.loading import load

__version__ = "0.1.0"
__all__ = ["SSLClassifier", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """``load`` and ``SSLClassifier``, imported when asked for: torch is slow to import, and help needs none of it."""
    if name == "load":
        from ssl_weighting.app.loading import load

        return load
    if name == "SSLClassifier":
        from ssl_weighting.app.estimator import SSLClassifier

        return SSLClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
