"""A trained model in a folder of its own: ``ssl-weighting export`` writes one, ``ssl_weighting.load`` reads it.

Reading needs neither lightning nor the training data.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """``ssl-weighting export``; see :func:`ssl_weighting.app.portable.command.main`."""
    from ssl_weighting.app.portable.command import main as export  # needs lightning

    return export(argv)
