"""What a finished run says."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from ssl_weighting.module import SSLModule


def print_summary(module: SSLModule, trainer: Trainer, directory: Path) -> None:
    """A small table: errors, the range of λ, and where everything lies."""
    values = module.weights.values.detach().float()
    moved = int((module.record.updates > 0).sum())
    table = Table(show_header=False, title="finished", title_justify="left")
    table.add_row("θ steps", f"{trainer.global_step}")
    for key, name in (("validation/error", "validation error"), ("test/error", "test error")):
        value = trainer.callback_metrics.get(key, module.latest.get(key))
        if value is not None:
            table.add_row(name, f"{100 * float(value):.2f} %")
    if module.learns_weights:
        table.add_row("λ mean, min, max", f"{values.mean():.3f}, {values.min():.3f}, {values.max():.3f}")
        table.add_row("unlabelled examples moved", f"{moved} of {module.weights.size}")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"run folder: {directory}", highlight=False)
