# SPDX-License-Identifier: Apache-2.0
"""Stop a run where its first step would begin, with all that it would train on in place."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Begun(Exception):
    """The first step begins."""


def at_first_step(request: Any, do: Callable[[Any], T]) -> T:
    """Prepare a run as the engine does, and do something else than train.

    Args:
        request: The run.
        do: Called with the loop, the adapters attached.

    Returns:
        What it gave.

    Raises:
        RuntimeError: The run never came to its loop.
    """
    from graft.host import engine
    from graft.trainers.loop import Loop

    found: list[T] = []

    def begin(loop: Any) -> bool:
        found.append(do(loop))
        raise _Begun

    real, Loop.run = Loop.run, begin  # type: ignore[method-assign]
    try:
        engine.train(request)
    except _Begun:
        return found[0]
    finally:
        Loop.run = real  # type: ignore[method-assign]
    raise RuntimeError("the loop was never run")
