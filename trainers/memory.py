# SPDX-License-Identifier: Apache-2.0
"""What a run does when the device's memory runs out in the middle of a step.

The step begins again with half the micro-batch and as many more of them: every draw is keyed by its slot, so that this
is the same mathematics. At a micro-batch of 1 gradient checkpointing of all blocks is turned on, then the weights of
the blocks go to the CPU where that is possible; after that the run ends.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .events import Sink, Warned

T = TypeVar("T")
SMALLER = (
    "Train at a smaller resolution, with a lower rank or on fewer blocks, or close what else uses the device's "
    "memory."
)


class OutOfMemory(RuntimeError):
    """The memory does not do, and nothing is left to try."""


@dataclass(frozen=True)
class Relief:
    """What a run has to know of the memory it trains in.

    Attributes:
        is_out: Whether an error says that the memory has run out.
        free: Gives back what nothing uses any more.
        checkpoint: Turns gradient checkpointing of all blocks on; False when it was on. Raises a ``ValueError`` where
            it cannot.
        error: What the run ends with, from the message.
        offload: Moves weights to the CPU; False where that is done, or must not be. Raises a ``ValueError`` where it
            cannot.
    """

    is_out: Callable[[Exception], bool] = lambda error: isinstance(
        error, torch.cuda.OutOfMemoryError | MemoryError
    )
    free: Callable[[], object] = gc.collect
    checkpoint: Callable[[], bool] = lambda: False
    error: Callable[[str], Exception] = OutOfMemory
    offload: Callable[[], bool] = lambda: False


class Memory:
    """How large the micro-batches of one run are, and what makes them smaller.

    Args:
        micro_batch: Pictures in one forward pass, at first; 0 is the plan's batch size.
        relief: What counts as out of memory, and what helps.
        sink: Hears of every step down.

    Attributes:
        micro_batch: Pictures in one forward pass now.
        told: What a report says: the plan, where there is one, and a line for each step down.
        changed: Called after a step down: passes are shorter or slower from here on.
    """

    def __init__(
        self, micro_batch: int = 0, relief: Relief | None = None, sink: Sink = lambda event: None
    ) -> None:
        self.micro_batch = micro_batch
        self.told: list[str] = []
        self.changed: Callable[[], None] = lambda: None
        self._relief, self._sink = relief or Relief(), sink
        self._tried: list[str] = []

    def cut(self, slots: int) -> list[range]:
        """The micro-batches of an effective batch of ``slots``."""
        size = self.micro_batch
        return [range(start, min(start + size, slots)) for start in range(0, slots, size)]

    def attempt(self, work: Callable[[], T], drop: Callable[[], object], where: str) -> T:
        """Do ``work``, from its beginning again with less memory as often as it runs out of it.

        Args:
            work: Reads ``micro_batch``; changes nothing that ``drop`` does not undo.
            drop: Undoes what an attempt has done until it failed.
            where: For messages: ``at step 7``.

        Returns:
            What ``work`` returns.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not self._relief.is_out(error):
                    raise
                said = _first_line(error)
            # Only here, when the error is gone with its traceback, are the activations free.
            drop()
            self._relief.free()
            self._step_down(where, said)

    def once(self, work: Callable[[], T], where: str) -> T:
        """Do ``work`` that cannot begin again.

        Args:
            work: What is done.
            where: For messages.

        Returns:
            What ``work`` returns.

        Raises:
            Exception: The memory ran out: ``relief.error`` with what to do.
        """
        try:
            return work()
        except Exception as error:
            if not self._relief.is_out(error):
                raise
            said = _first_line(error)
        raise self._relief.error(
            f"Out of memory {where}, while the weights were moved ({said}). Choose an optimizer that keeps less "
            f"(adamw-8bit, lion, adafactor). {SMALLER}"
        )

    def _step_down(self, where: str, said: str) -> None:
        self._tried.append(f"{self.micro_batch} in a forward pass")
        if self.micro_batch > 1:
            before, self.micro_batch = self.micro_batch, self.micro_batch // 2
            text = (
                f"Out of memory {where} with {before} pictures in a forward pass: it begins again with "
                f"{self.micro_batch}, and more passes in a step. The result is the same. ({said})"
            )
        else:
            text = (
                f"Out of memory {where} with 1 picture in a forward pass: {self._help(where, said)} from here on, "
                f"which is slower. The result is the same. ({said})"
            )
        self.told.append(text)
        self._sink(Warned(text))
        self.changed()

    def _help(self, where: str, said: str) -> str:
        """Do what makes a pass of one picture smaller, and say what; raise where nothing does."""
        reasons: list[str] = []
        for help_, done in (
            (self._relief.checkpoint, "gradient checkpointing is on"),
            (self._relief.offload, "the weights of the blocks are on the CPU"),
        ):
            try:
                if help_():
                    self._tried.append(done)
                    return done
                reasons.append("" if reasons else done)
            except ValueError as error:
                reasons.append(str(error))
        raise self._relief.error(self._end(where, said, reasons[0]))

    def _end(self, where: str, said: str, why: str) -> str:
        tried = ", then ".join(dict.fromkeys(self._tried))
        return f"Out of memory {where} ({said}). Tried: {tried}; {why}. {SMALLER}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
