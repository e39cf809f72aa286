"""What a finished run says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssl_weighting.app.baseline import Verdict
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting import Statistics


def print_summary(
    module: SSLModule,
    weights: Tensor,
    statistics: Statistics,
    directory: Path,
    page: Path,
    verdict: Verdict | None,
    findings: Sequence[tuple[str, str]] = (),
) -> None:
    """A small table: errors, the range of λ, and where everything lies.

    Args:
        module: The trained and evaluated module.
        weights: λ of the examples ``module.weighting.sampled()``, (n,).
        statistics: What happened to them.
        directory: The run's folder.
        page: Its report page.
        verdict: What the plainest use of the labels came to, if it was tried.
        findings: See :func:`~ssl_weighting.app.findings.keep_findings`.
    """
    values, moved = weights.float(), int((statistics.updates > 0).sum())
    table = Table(show_header=False, title="finished", title_justify="left")
    table.add_row("θ steps", f"{module.trainer.global_step}")
    for key, name in (("validation/error", "validation error"), ("test/error", "test error")):
        if key in module.latest:
            table.add_row(name, f"{100 * module.latest[key]:.2f} %")
    if verdict is not None:
        for name, value in verdict_rows(verdict):
            table.add_row(name, value)
    if module.weighting.learns:
        table.add_row("λ mean, min, max", f"{values.mean():.3f}, {values.min():.3f}, {values.max():.3f}")
        table.add_row("unlabelled examples moved", f"{moved} of {len(values)}")
        if phi := module.weighting.weights.told():
            table.add_row(
                "φ of the evidence", ", ".join(f"{name} {value:+.2f}" for name, value in phi.items())
            )
    for name, value in findings:
        table.add_row(name, value)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"run folder: {directory}", highlight=False, markup=False)
    console.print(f"report: {page}", highlight=False, markup=False)


def verdict_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """What the labels alone came to and, where the two were compared, the model with the pool; name and value."""
    rows = []
    name = f"labels only ({verdict.labels}, {verdict.reads})"
    if verdict.test_error is not None:
        rows.append((name, f"{100 * verdict.test_error:.2f} % test error"))
    if verdict.probe.held_out is None:
        rows.append((name, "a class has a single label: nothing to cross-validate with"))
    else:
        rows.append((name, f"{100 * verdict.probe.error:.2f} % cross-validated"))
    if verdict.belonging is not None:
        rows.append(
            ("of no known class", f"about {1 - verdict.belonging.share:.0%} of the pool (own_probability)")
        )
    if verdict.mixture is not None and verdict.pool_error is not None:
        share = verdict.mixture.share
        rows.append(("with the pool", f"{100 * verdict.pool_error:.2f} % cross-validated"))
        rows.append(("handed over", told(share)))
    return rows


def told(share: float) -> str:
    """How far the model with the pool is believed, from its share of a prediction."""
    if share == 0:
        return "labels only: the pool did not help"
    if share == 1:
        return "the model with the pool"
    return f"both: {share:.0%} the model with the pool, {1 - share:.0%} labels only"
