"""What every benchmark takes on its command line."""

from __future__ import annotations

import argparse
from typing import Any

from ssl_weighting.errors import UserError


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and where its results go."""
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads, default PyTorch's choice")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")


def check_counts(options: Any, *keys: str) -> None:
    """Refuse what cannot be counted.

    Raises:
        UserError: Naming the first option below 1.
    """
    for key in keys:
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"bench --{key}={value}: must be at least 1")
