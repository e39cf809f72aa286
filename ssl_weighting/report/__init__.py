"""``ssl-weighting report``: one page a run, or tables and figures over many."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write ``report.html`` into every run's folder; with ``--out`` tables and figures over all of them.

    Args:
        argv: ``RUN [RUN …] [--out DIR]``.

    Returns:
        The exit status, 0.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, help="folder for tables and figures over all the runs")
    options = parser.parse_args(argv)
    if options.out is not None:
        from ssl_weighting.report.tables import write_tables

        write_tables(options.runs, options.out)
        return 0
    from ssl_weighting.report.page import write_page
    from ssl_weighting.runs import Run

    for run in [Run(directory) for directory in options.runs]:
        print(write_page(run))
    return 0
