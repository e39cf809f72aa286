"""``ssl-weighting report``: one page a run."""

from __future__ import annotations

import argparse
import sys

from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path


def main(argv: list[str]) -> int:
    """Write ``report.html`` into every run's folder.

    Args:
        argv: ``RUN [RUN …]``.

    Returns:
        The exit status: 0, or 2 if a page could not be drawn; the others are.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=home_path, metavar="RUN", help="folder of a run")
    options = parser.parse_args(argv)
    from ssl_weighting.app.report.page import write_page
    from ssl_weighting.app.runs import Run

    status = 0
    for run in [Run(directory) for directory in options.runs]:
        try:
            print(write_page(run))
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            status = 2
    return status
