"""``python -m lab``: studies, their tables, and speed, from the checkout's folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from ssl_weighting.app.names import suggestion
from ssl_weighting.app.threads import wait_asleep
from ssl_weighting.errors import UserError

COMMANDS = {"study": "lab.study", "tables": "lab.tables", "bench": "lab.speed"}

USAGE = """\
usage: python -m lab COMMAND

  study FILE               a declared grid of runs, such as lab/studies/synthetic.yaml
  tables FOLDER --out DIR  tables and figures over a study's runs, or over folders of runs
  bench NAME               speed and memory: influence, per-example-gradient, throughput, memory, features

The scripts behind single figures: python -m lab.claims.NAME --help"""


def main(argv: list[str]) -> int:
    """Run a command of the laboratory; returns its exit status, 2 after bad input (one line on stderr)."""
    wait_asleep()
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"{argv[0]}: no such command; {suggestion(argv[0], COMMANDS)}")
        command: Callable[[list[str]], int] = import_module(COMMANDS[argv[0]]).main
        return command(argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
