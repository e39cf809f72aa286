"""metrics.csv: every logged scalar of a run, whatever other logger is on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ssl_weighting.files import whole_file


class MetricsCsv(Logger):
    """A wide table: one row a call of ``log_metrics``, a ``step`` column (θ steps) and one column a metric.

    The file is appended to, and written anew only when a metric appears for the first time. A resumed run goes on in
    the same file, after the rows written since the checkpoint were dropped.

    Args:
        path: The file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                self._rows = [row for row in reader if None not in row.values() and None not in row]

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics_csv"

    @property
    def version(self) -> str:
        """Version: the run is its own."""
        return ""

    @property
    def length(self) -> int:
        """Rows so far."""
        return len(self._rows)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": str(step)} | {
            k: f"{float(v):.8g}" for k, v in metrics.items() if k not in ("epoch", "step")
        }
        if len(row) == 1:
            return
        self._rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write_all()
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    @rank_zero_only
    def keep(self, count: int) -> None:
        """Drop all but the first ``count`` rows: what a run wrote after its checkpoint, it writes again."""
        if count < len(self._rows):
            self._rows = self._rows[:count]
            self._write_all()

    def _write_all(self) -> None:
        with whole_file(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
