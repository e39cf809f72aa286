"""How many θ steps a machine takes in the time that a run may take."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from ssl_weighting.app.init.choice import Choice
from ssl_weighting.backbones.base import Backbone
from ssl_weighting.precision import has_bfloat16

SECONDS = {"cpu": 200.0, "cuda": 600.0}
"""What a run may take."""
FEWEST, MOST = 600, {"cpu": 1000, "cuda": 20_000}
"""θ steps."""
WHOLE = 1.6
"""Time of training ÷ that of a step's passes: Λ steps, views, optimiser."""


def choose_steps(choice: Choice, backbone: Backbone, inputs: Any, device: str) -> None:
    """As many θ steps as the time allows, by timing the network on one step's examples in ``precision: auto``."""
    seconds = _seconds(backbone.to(device).train(), _on(inputs, device), device)
    each = WHOLE * seconds
    steps = min(MOST[device], max(FEWEST, int(SECONDS[device] / each) // 50 * 50))
    choice.steps = steps
    choice.note(
        "max_steps", steps, f"a step takes some {each:.2g} s here, the whole about {minutes(steps * each)}"
    )


def _on(inputs: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)


def _seconds(network: nn.Module, inputs: Any, device: str) -> float:
    """Shortest of three passes forward and back; the first warms up."""

    def once() -> float:
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device)):
            loss = network(inputs).sum()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(2))


def minutes(seconds: float) -> str:
    """Seconds as people say them."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
