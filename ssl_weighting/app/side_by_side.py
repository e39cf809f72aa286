"""Several runs at once, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ssl_weighting.errors import UserError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@contextlib.contextmanager
def side_by_side(
    jobs: Mapping[K, Callable[[], T]], processes: int, option: str
) -> Iterator[Iterator[tuple[K, Future[T]]]]:
    """Start jobs in worker processes of one thread each; however the block is left, nobody is waited for.

    Args:
        jobs: What to call, by a name of the caller's; both are pickled.
        processes: Workers, at most.
        option: The option that says how many, for the message.

    Yields:
        Names and results, as the jobs end. A result raises what its job raised.

    Raises:
        UserError: A worker was killed from outside, or there is to be none.
    """
    if processes < 1:
        raise UserError(f"{option} {processes}: must be at least 1")
    pool = ProcessPoolExecutor(
        min(processes, max(1, len(jobs))), multiprocessing.get_context("spawn"), _start_worker
    )
    try:
        names = {pool.submit(job): name for name, job in jobs.items()}
        yield ((names[ended], ended) for ended in as_completed(names))
    except BrokenProcessPool:
        raise UserError(
            f"{option} {processes}: a run was killed from outside (too little memory for so many?); "
            "start it again, perhaps with fewer"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # not terminate: Lightning would end its step, and the worker begin another job
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Take one thread, as the number of threads changes how sums are rounded, and end however the parent ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
