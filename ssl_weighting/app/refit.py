"""``ssl-weighting refit``: weights are known, so that the labels that they were learned on can train as well."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from ssl_weighting.app.runs import find_run
from ssl_weighting.data.split import Split, write_split
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

USAGE = """\
usage: ssl-weighting refit RUN [--KEY VALUE ...]

Train again on all labels, those that RUN kept aside among them, with the weights that it has learned: they stay as they
are. The new run stands beside it.

  RUN              a run's folder, or a folder that holds one run
  --KEY VALUE      an option of fit, such as --trainer.max_steps 1000"""


def main(argv: list[str]) -> int:
    """Start the run; returns the exit status, 0.

    Args:
        argv: ``RUN`` and options of ``fit``.

    Raises:
        UserError: On bad input.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: the run comes first: ssl-weighting refit RUN {' '.join(argv[:2])}")
    run = find_run(home_path(argv[0]), "weights.parquet").resolve()
    split = _of(run, argv[0])
    if not len(split.validation):
        raise UserError(
            f"RUN={argv[0]}: kept no label aside (data.num_validation=0): all of them have trained"
        )
    whole = dataclasses.replace(
        split,
        labeled=torch.cat((split.labeled, split.validation)).sort().values,
        validation=split.validation[:0],
    )
    path = run / "refit.split.json"
    write_split(whole, path)
    print(
        f"{len(split.labeled)} labels and the {len(split.validation)} kept aside: all train", file=sys.stderr
    )
    from ssl_weighting.app.cli import run_lightning  # imports this package's commands

    own = {
        "data.split": path,
        "model.weighting.kind": "fixed",
        "model.weighting.weights": run / "weights.parquet",
    }
    given = [word for key, value in own.items() for word in (f"--{key}", str(value))]
    run_lightning(["fit", "--config", str(run / "config.yaml"), *given, *argv[1:]])
    return 0


def _of(run: Path, given: str) -> Split:
    """The run's split, as it stands in its folder."""
    from ssl_weighting.app.runs import Run

    try:
        return Run(run).split
    except UserError as error:
        raise UserError(f"RUN={given}: {error}") from None
