"""``ssl_weighting.load``: a run, or a folder that was exported of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_weighting.app.portable.model import PortableModel, is_portable, load_portable
from ssl_weighting.files import home_path

if TYPE_CHECKING:  # needs lightning
    from ssl_weighting.app.trained import TrainedModel


def load(run: str | Path, device: str | None = None) -> TrainedModel | PortableModel:
    """A trained model, ready to use.

    ::

        model = ssl_weighting.load("runs/flowers")
        model.predict(["new/1.jpg", "new/2.jpg"])     # ["rose", "tulip"]
        model.probabilities("new")                    # of a run, a folder too: float32 (n, C)

    Args:
        run: A run's folder, a folder that holds one run, or a checkpoint file; or what ``ssl-weighting export`` wrote,
            for which neither lightning nor the run's data are needed.
        device: Where to compute, such as ``cpu`` or ``cuda:1``; default: a GPU, if there is one.

    Raises:
        UserError: If there is no such run, or what its configuration names, such as an encoder, is not there.
    """
    folder = home_path(run)
    if is_portable(folder):
        return load_portable(folder, device)
    from ssl_weighting.app.trained import load_run

    return load_run(run, device)
