"""Options of earlier versions, and what they are called now."""

from __future__ import annotations

MOVED = {
    "weighting": "weighting.kind",
    "inner_steps": "weighting.inner_steps",
    "warmup_steps": "weighting.warmup_steps",
    "weight_lr": "weighting.lr",
    "weight_optimizer": "weighting.optimizer",
    "bias_correction": "weighting.bias_correction",
    "weight_init": "weighting.init",
    "weight_bounds": "weighting.bounds",
    "update_masked": "weighting.update_masked",
    "weight_storage": "weighting.storage",
    "influence_batchnorm": "weighting.batchnorm",
    "optimizer": "theta.optimizer",
    "decay_all": "theta.decay_all",
    "schedule": "theta.schedule",
    "lr_warmup_steps": "theta.lr_warmup_steps",
    "clip_norm": "theta.clip_norm",
    "accumulate": "theta.accumulate",
    "ema_decay": "theta.ema_decay",
}
"""Where options of ``model`` went when they were grouped."""


def renamed(key: str) -> str | None:
    """The key that an option of earlier versions has now."""
    group, _, rest = key.partition(".")
    name, dot, inner = rest.partition(".")
    return f"model.{MOVED[name]}{dot}{inner}" if group == "model" and name in MOVED else None
