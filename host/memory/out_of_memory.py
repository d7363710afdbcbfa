# SPDX-License-Identifier: Apache-2.0
"""The host's memory: when it has run out, what gives some back, and what a run ends with that has none."""

import gc

from ...trainers.memory import OutOfMemory

# Of a RuntimeError, where the device has no class of its own: CPU (Linux, Windows), MPS, cuBLAS and cuDNN.
TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory has run out, by the host's own rule where it has one."""
    import comfy.model_management as mm

    known = getattr(mm, "is_oom", None)
    if known is not None and known(error):
        return True
    # The host has Exception for it where torch has no such class.
    kinds = tuple({mm.OOM_EXCEPTION, MemoryError} - {Exception})
    if isinstance(error, kinds):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error).lower() for t in TEXTS)


def free() -> None:
    """Give back what nothing uses any more, to the device too."""
    import comfy.model_management as mm

    gc.collect()
    mm.soft_empty_cache()


def end(text: str) -> Exception:
    """The error that ends a run, of the kind for which the host unloads its models."""
    import comfy.model_management as mm

    kind = mm.OOM_EXCEPTION
    if not (isinstance(kind, type) and issubclass(kind, RuntimeError)):
        kind = OutOfMemory
    made: Exception = kind(text)
    return made
