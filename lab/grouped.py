"""Modules made of flat options, so that one of them can be varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_weighting.encoder import FeatureOptions
from ssl_weighting.module import SSLModule
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

GROUPS: dict[str, type] = {"weighting": WeightingOptions, "theta": ThetaOptions, "features": FeatureOptions}


def grouped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a module: ``weighting_lr`` is ``lr`` of its ``weighting``, ``theta_optimizer`` of its ``theta``."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        group, _, field = name.partition("_")
        if group in GROUPS and field:
            found.setdefault(group, {})[field] = value
        else:
            found[name] = value
    parts = {group: kind for group, kind in GROUPS.items() if isinstance(found.get(group), dict)}
    return found | {group: kind(**found[group]) for group, kind in parts.items()}


def ssl_module(*arguments: Any, **options: Any) -> SSLModule:
    """See :func:`grouped`."""
    return SSLModule(*arguments, **grouped(options))
