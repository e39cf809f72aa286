"""A trained model on disk: found by its run's folder, and read with all that it needs to be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from ssl_weighting.app.portable.model import is_portable
from ssl_weighting.app.runs import BELONGING, find_run
from ssl_weighting.errors import UserError, named
from ssl_weighting.files import home_path, whole_file

T = TypeVar("T")
KEY = "ssl_weighting"
"""What a checkpoint holds of ours, besides Lightning's."""


def find_checkpoint(run: str | Path, name: str = "last", key: str = "RUN") -> Path:
    """The checkpoint of a run.

    Args:
        run: A run's folder, a folder that holds one run, or a checkpoint file.
        name: ``last``, or ``previous`` for the one before it.
        key: What it was given as, for messages: ``RUN``, or ``run`` in Python.

    Raises:
        UserError: If there is none, or several; names what to give.
    """
    path = home_path(run)
    if path.is_file():
        return path
    if is_portable(path):
        raise UserError(
            f"{named(key, path)}: an exported model, which Python reads: ssl_weighting.load({str(path)!r}); here give "
            "the folder of a run"
        )
    folder = path.parent if path.name == "checkpoints" else path
    return find_run(folder, f"checkpoints/{name}.ckpt", key) / "checkpoints" / f"{name}.ckpt"


@dataclass(frozen=True)
class Saved:
    """A checkpoint, opened; no code in it is run.

    Attributes:
        path: Its file.
        content: What Lightning and this program wrote, tensors on the CPU.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def own(self) -> Mapping[str, Any]:
        """What this program wrote: seed, split, configuration, memory of the data."""
        return dict(self.content[KEY])

    @property
    def run(self) -> Path | None:
        """The folder of the run that it lies in; ``None`` for one that was copied out."""
        folder = self.path.resolve().parent
        return folder.parent if folder.name == "checkpoints" else None

    @property
    def belonging(self) -> Path | None:
        """The file by which examples get their ``own_probability``; ``None`` where the run has none."""
        path = None if self.run is None else self.run / BELONGING
        return path if path is not None and path.is_file() else None

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """The resolved configuration that it was trained with.

        Raises:
            UserError: If it was trained by a Trainer in Python and has none.
        """
        text = self.own.get("configuration")
        if not text:
            raise UserError(
                f"RUN={self.path}: was trained from Python and holds no configuration; make module and data as for "
                "training, and give the file to Trainer.test(..., ckpt_path=...)"
            )
        return dict(yaml.safe_load(text))

    @property
    def step(self) -> int:
        """θ steps made."""
        return int(self.content["global_step"])


def open_checkpoint(path: Path, given: str) -> Saved:
    """Read a checkpoint.

    Args:
        path: Its file.
        given: How a person named it, such as ``RUN=runs/demo``, for messages.

    Raises:
        UserError: If it is damaged or another program's; names the one before it where there is one.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # whatever a damaged file makes torch.load raise
        before = path.with_name("previous.ckpt")
        hint = (
            f"{before} is the one before it; give that file"
            if path != before and before.is_file()
            else "give another run"
        )
        raise UserError(
            f"{given}: {path} is not a whole checkpoint ({type(error).__name__}); {hint}"
        ) from error
    if not isinstance(content, dict) or KEY not in content:
        raise UserError(f"{given}: {path} was not written by this program; give the folder of a run")
    return Saved(path, content)


def below(state: Mapping[str, T], prefix: str) -> dict[str, T]:
    """What has names that begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def write_handed_over(path: Path, kept: dict[str, Any]) -> None:
    """Make a checkpoint predict by a probe as well; a run that goes on from it trains what it trained.

    Args:
        path: The checkpoint; the one before it stays as it is.
        kept: See :func:`ssl_weighting.app.baseline.handed_over`.
    """
    content = dict(open_checkpoint(path, str(path)).content)
    content[KEY] = {**content[KEY], "handed_over": kept}
    with whole_file(path) as partial:
        torch.save(content, partial)
