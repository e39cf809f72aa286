"""What a run must know of its processes and its machine: one folder for all, one run a folder, and faults by name."""

from __future__ import annotations

import fcntl
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import StrategyRegistry
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import LocalError, PeerError, UnwritableError, UserError
from ssl_weighting.files import UNUSABLE

PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "NCCL",
)


def agreed(name: str, decide: Callable[[], str]) -> str:
    """What the first process decides; the others are told.

    Processes that Lightning starts inherit the environment; those that torchrun starts share its store.

    Args:
        name: What it is, a word.
        decide: Called in the first process.

    Raises:
        UserError: In another process that cannot know.
    """
    variable = f"SSL_WEIGHTING_{name.upper()}"
    store = None
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        key = f"{variable}_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if is_first_process():
        os.environ[variable] = decided = decide()
        if store is not None:
            store.set(key, decided)
        return decided
    if store is not None:
        return str(store.get(key).decode())
    if variable in os.environ:
        return os.environ[variable]
    raise UserError(
        "trainer.strategy: processes that others start cannot agree on a run's folder; start them by torchrun, or "
        "leave it to trainer.devices"
    )


def locked(directory: Path) -> int:
    """Take a run's folder for this process until :func:`release`, or until the process ends in whatever way.

    Raises:
        UserError: If another process trains there.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{directory}: another process trains in this folder; wait until it is done, or start a new run with fit"
        ) from None
    _held.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Give back what :func:`locked` took."""
    _held.discard(descriptor)  # its number is another file's from now on
    os.close(descriptor)


_held: set[int] = set()


def _release_all() -> None:
    for descriptor in list(_held):
        release(descriptor)


# A data worker that outlives a killed run by some seconds must not hold the lock.
os.register_at_fork(after_in_child=_release_all)


def check_strategy(strategy: Any) -> None:
    """Refuse strategies under which Λ steps or checkpoints would not work.

    Raises:
        UserError: With the reason and what to use instead.
    """
    name = str(strategy if isinstance(strategy, str) else strategy["class_path"])
    plain = name.rpartition(".")[2]
    if plain in ("auto", "DDPStrategy", "SingleDeviceStrategy", "fsdp2") or plain.startswith("single_"):
        return
    if (
        plain in StrategyRegistry
        and plain.startswith("ddp")
        and not any(kind in plain for kind in ("spawn", "fork", "notebook"))
    ):
        return
    raise UserError(
        f"trainer.strategy={name}: not one that Λ steps, the average of θ and checkpoints know; use ddp, or fsdp2 for "
        "networks too large for one GPU"
    )


def on_one_line(error: UserError) -> UserError:
    """The error, without the traceback that torch puts into the message if a data worker raised it."""
    if "in DataLoader worker" not in str(error):
        return error
    return UserError(str(error).strip().splitlines()[-1].partition(": ")[2])


def explained(error: BaseException) -> UserError | None:
    """What a person needs to know of a fault of the machine, if it is one: else ``None``."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        return UnwritableError(f"{error.filename or 'a file of the run'}: {error.strerror}")
    handing_over = isinstance(error, OSError | EOFError) and _passed_through(error, "resource_sharer.py")
    if handing_over or (isinstance(error, RuntimeError) and "DataLoader worker" in message):
        what = (
            "DataLoader worker was lost while it handed over a batch"
            if handing_over
            else message.split(".")[0]
        )
        return LocalError(
            f"data.num_workers: {what}; something killed it, often for want of memory. "
            "ssl-weighting resume RUN goes on from the last checkpoint, with fewer workers if need be"
        )
    if isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(sign in message for sign in PEER_LOST)
    ):
        return PeerError(
            "another process of this run stopped or was killed, so this one stops too; the last checkpoint is whole, "
            "and ssl-weighting resume RUN goes on from there"
        )
    return None


def _passed_through(error: BaseException, file: str) -> bool:
    return any(Path(frame.filename).name == file for frame in traceback.extract_tb(error.__traceback__))
