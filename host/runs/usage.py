# SPDX-License-Identifier: Apache-2.0
"""How much memory this process holds where it trains, for people who watch."""

from typing import Any

_GIB = 2**30


def used_gib() -> float | None:
    """GiB that torch has taken on the host's device, or that the process has on a CPU; None where nobody can say."""
    try:
        import comfy.model_management
        import torch

        device = comfy.model_management.get_torch_device()
        used = _resident() if device.type == "cpu" else _taken(torch, device)
    except (ImportError, RuntimeError, AttributeError, OSError):
        return None
    return None if used is None else round(used / _GIB, 3)


def _taken(torch: Any, device: Any) -> int | None:
    module = getattr(torch, device.type, None)
    for name in ("memory_reserved", "driver_allocated_memory"):
        ask = getattr(module, name, None)
        if ask is not None:
            return int(ask(device) if name == "memory_reserved" else ask())
    return None


def _resident() -> int:
    import psutil  # the host's own requirement

    return int(psutil.Process().memory_info().rss)
