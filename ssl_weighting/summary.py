"""What a finished run says."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_weighting.module import SSLModule


def print_summary(module: SSLModule, directory: Path) -> None:
    """A small table: errors, the range of λ, and where everything lies.

    Args:
        module: The trained and evaluated module.
        directory: The run's folder.
    """
    values = module.weights.values.detach().float()
    moved = int((module.record.updates > 0).sum())
    table = Table(show_header=False, title="finished", title_justify="left")
    table.add_row("θ steps", f"{module.trainer.global_step}")
    for key, name in (("validation/error", "validation error"), ("test/error", "test error")):
        if key in module.latest:
            table.add_row(name, f"{100 * module.latest[key]:.2f} %")
    if module.learns_weights:
        table.add_row("λ mean, min, max", f"{values.mean():.3f}, {values.min():.3f}, {values.max():.3f}")
        table.add_row("unlabelled examples moved", f"{moved} of {module.weights.size}")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"run folder: {directory}", highlight=False)
