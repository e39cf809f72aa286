"""``ssl-weighting report``: one page a run, or tables and figures over many."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ssl_weighting.errors import UserError


def main(argv: list[str]) -> int:
    """Write ``report.html`` into every run's folder; with ``--out`` tables and figures over all of them.

    Args:
        argv: ``RUN [RUN …] [--out DIR]``.

    Returns:
        The exit status: 0, or 2 if a page could not be drawn; the others are.
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

    status = 0
    for run in [Run(directory) for directory in options.runs]:
        try:
            print(write_page(run))
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            status = 2
    return status
