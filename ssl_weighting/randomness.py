"""Random numbers that are a function of what they are for."""

from __future__ import annotations

import hashlib

import torch


def seed_by(key: str, device: torch.device) -> None:
    """Make what torch draws from here on, on the CPU and on a device, a function of a text."""
    value = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    # torch.manual_seed queues a call, with its stack, for every kind of device that was never used
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
