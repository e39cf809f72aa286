"""In what precision a run computes: what the machine does fast, and what would spoil the weights is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import DataWarning, UserError

BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls them: x86's two, and ARM's."""
NAMES = {"cuda": "GPU", "cpu": "CPU", "mps": "MPS device"}
KNOWN = ("32", "32-true", "64", "64-true", "bf16", "bf16-mixed")
"""In which θ, its average and Λ are kept with at least 32 bits."""


def settled_precision(precision: Any, accelerator: Any) -> Any:
    """The precision that a run takes; says it in one line where nobody else has, or where it will be slow.

    Args:
        precision: ``auto``, or one of Lightning's.
        accelerator: ``trainer.accelerator``.

    Returns:
        One of Lightning's: for ``auto``, ``bf16-mixed`` where the machine has units for it, else ``32-true``.

    Raises:
        UserError: See :func:`check_precision`.
    """
    if precision != "auto":
        check_precision(precision)
    device = _device(accelerator)
    fast, name = has_bfloat16(device), NAMES[device]
    if precision == "auto":
        chosen = "bf16-mixed" if fast else "32-true"
        why = "has" if fast else "has no"
        if is_first_process():
            print(f"trainer.precision: {chosen}, for this {name} {why} bfloat16 units", flush=True)
        return chosen
    if str(precision) in ("bf16", "bf16-mixed") and device == "cpu" and not fast:
        warnings.warn(
            f"trainer.precision={precision}: this CPU has no bfloat16 units, and convolutions can take ten times as long "
            "as in float32; --trainer.precision auto takes what is fast here",
            DataWarning,
            stacklevel=2,
        )
    return precision


def check_precision(precision: object) -> None:
    """Refuse float16, networks that are kept in fewer than 32 bits, and whatever is not known to keep more.

    Raises:
        UserError: With the reason and what to use instead.
    """
    if str(precision) in ("16", "16-mixed", "16-true"):
        raise UserError(
            f"trainer.precision={precision}: float16 scales the loss, and under manual optimisation Lightning would "
            "clip the scaled gradients; use bf16-mixed or 32-true"
        )
    if str(precision) == "bf16-true":
        raise UserError(
            "trainer.precision=bf16-true: θ, its average and Λ would be kept with 8 bits, in which small steps are lost "
            "(the average does not move at all); use bf16-mixed, which is as fast, or 32-true"
        )
    if precision is not None and str(precision) not in KNOWN:  # Lightning's default is 32-true
        raise UserError(f"trainer.precision={precision}: use 32-true, bf16-mixed, 64-true or auto")


def has_bfloat16(device: str) -> bool:
    """Whether the GPU (``cuda``) or the processor (``cpu``) of this machine computes in bfloat16 by units of its own."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return device == "cpu" and flags.is_file() and bool(BFLOAT16_UNITS & {*flags.read_text().split()})


def _device(accelerator: Any) -> str:
    """``cuda``, ``cpu`` or ``mps``: what Lightning takes for ``trainer.accelerator``."""
    wanted = str(accelerator)
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    mps = wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    return "mps" if mps else "cpu"
