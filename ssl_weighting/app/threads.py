"""How many threads to compute with, and how they wait: a machine is often shared, and a container often gets a part."""

from __future__ import annotations

import os

import joblib


def wait_asleep() -> None:
    """Make OpenMP's threads sleep while they wait for each other; to be called before torch is imported.

    They spin otherwise, for milliseconds at the end of every operation. Where another program wants the same cores, small
    networks then train more than ten times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def free_cores() -> int:
    """Cores that this process may use, by its affinity and its control group; at least 1."""
    return int(joblib.cpu_count())


def use_free_cores() -> int:
    """Compute with as many threads as there are cores free to use, or fewer if the environment says so.

    torch itself counts the machine's cores, of which a container may have a fraction. The number does not depend on what
    else runs: a resumed run has to compute what the first one did.

    Returns:
        The number of threads.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), free_cores()))
    return torch.get_num_threads()


def said_threads() -> str:
    """How many threads compute, and why so many, in a line."""
    import torch

    threads = torch.get_num_threads()
    named = (name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name) == str(threads))
    why = next((f"{name}={threads}" for name in named), "the cores that are free to use")
    return f"computing with {threads} thread{'s' * (threads != 1)}, by {why}"
