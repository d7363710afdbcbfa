# SPDX-License-Identifier: Apache-2.0
"""The memory plan of a run on the host's device: measured, chosen, and put in words.

A GPU's allocator knows the peak of a pass; elsewhere the bytes of tensors are counted, operator by operator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...trainers.allocations import held, peak
from ...trainers.loop import Loop
from ...trainers.memory_plan import (
    MIB,
    Blocks,
    Choice,
    choose,
    kept_now,
    largest_item,
    look,
    rehearse,
    to_come,
)
from ...trainers.plan import AUTO, OFF, ON, Plan
from ..model.trainee import Trainee
from ..runs.stopping import is_interrupt
from .block_costs import block_costs
from .out_of_memory import free, is_out_of_memory
from .text import Room, line, offload_line, refusal, some_blocks

# Parameters from which "auto" checkpoints on a GPU that cannot be measured.
LARGE_MODEL = 500_000_000
# Of the free memory is planned with: allocators waste some, and other programs come and go.
SPARE = 0.9
_log = logging.getLogger(__name__)


def loading(settings: Plan) -> dict[str, Any]:
    """What ``trainee`` has to know of a plan."""
    limit = settings.memory_limit * MIB
    return {"precision": settings.precision, "offload": settings.may_offload, "limit": limit}


def plan(
    loop: Loop,
    trained: Trainee,
    poll: Callable[[], object] = lambda: None,
    tell: Callable[[str], object] = lambda text: None,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Choose micro-batch, checkpointing and offloading for the memory that there is, and set them.

    Nothing is measured on a CPU without a limit, nor where neither the device nor the user says how much there is.

    Args:
        loop: The run, before its first step.
        trained: The trainee.
        poll: Called before every pass; may raise to interrupt.
        tell: Told what is done.
        warn: Told what the user should know.

    Returns:
        Facts for the log: ``gradient checkpointing``, and where they apply, ``memory plan`` and ``offload``.

    Raises:
        ValueError: Not even one picture fits into the limit; says what would.
    """
    settings = loop.plan
    if settings.memory_limit == 0 and _meter(trained.device) is None:
        trained.checkpointing(_by_size(settings, trained))
        return _facts(loop, trained)
    tell("measuring memory")
    item = largest_item(loop.data.buckets)
    try:
        room, choice, order = _found(loop, trained, item, poll, tell)
    except Exception as error:
        if is_interrupt(error):
            raise
        return _unmeasured(loop, trained, warn, error)
    trained.checkpointing(_places(order, choice.checkpointed))
    blocks = len(trained.blocks)
    if choice.micro_batch == 0:
        text = refusal(choice, blocks, room, settings, _pixels(loop, trained, item))
        if room.is_limit or not choice.passes:
            raise ValueError(text)
        warn(f"{text} It is tried all the same.")
    loop.memory.micro_batch = choice.micro_batch or 1
    text = line(choice, blocks, room, settings.batch_size)
    loop.memory.told.append(text)
    tell(text)
    return _facts(loop, trained) | {"memory plan": text}


def _found(
    loop: Loop,
    trained: Trainee,
    item: int,
    poll: Callable[[], object],
    tell: Callable[[str], object],
) -> tuple[Room, Choice, list[int]]:
    """What there is, what is chosen, and the blocks in the order in which they would be checkpointed."""
    settings = loop.plan
    while True:
        room = _room(loop, trained)
        tried = _Rehearsal(loop, trained, item, poll)
        sizes = (settings.batch_size, settings.effective_batch, room.passes)
        choice = choose(tried.measure, *sizes, _modes(settings, trained), tried.look_at)
        may_move = settings.may_offload == AUTO and trained.offloaded is None
        if choice.micro_batch or not may_move:
            return room, choice, tried.order
        try:
            trained.offload()
        except ValueError as error:
            _log.warning("The weights cannot be kept on the CPU: %s", error)
            return room, choice, tried.order
        tell("measuring memory with the weights of the blocks on the CPU")


def _facts(loop: Loop, trained: Trainee) -> dict[str, Any]:
    count, blocks = trained.checkpointed, len(trained.blocks)
    is_some = 0 < count < blocks
    facts: dict[str, Any] = {
        "gradient checkpointing": some_blocks(count, blocks) if is_some else count > 0
    }
    if trained.offloaded is not None:
        text = offload_line(trained)
        loop.memory.told.append(text)
        facts["offload"] = text
    return facts


def _unmeasured(
    loop: Loop, trained: Trainee, warn: Callable[[str], object], error: Exception
) -> dict[str, Any]:
    """Train as if nothing had been measured: what is wrong is not to end a run that may well fit."""
    _log.exception("The memory could not be measured")
    loop.drop()
    free()
    if trained.offloaded is not None:
        trained.reload()
    trained.checkpointing(_by_size(loop.plan, trained))
    warn(
        f"The memory could not be measured ({type(error).__name__}: {error}): batch_size is taken as it is. Should it "
        "run out, the step begins again with fewer pictures in a pass."
    )
    return _facts(loop, trained)


def _room(loop: Loop, trained: Trainee) -> Room:
    import comfy.model_management as mm

    free()
    device, limit = trained.device, loop.plan.memory_limit * MIB
    module = _meter(device)
    if module is None:
        there = held(trained.weights_there) + kept_now(loop)
        return Room(there, to_come(loop), limit, is_limit=True)
    there = int(module.memory_allocated(device))
    total = there + int(SPARE * mm.get_free_memory(device))
    is_limit = 0 < limit < total
    return Room(there, to_come(loop), limit if is_limit else total, is_limit)


def _meter(device: torch.device) -> Any:
    """The module of torch that keeps this device's peak; None where none does."""
    module = getattr(torch, device.type, None)
    names = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
    return module if device.type != "cpu" and all(hasattr(module, n) for n in names) else None


class _Rehearsal:
    """Measured passes over one picture of a run.

    Attributes:
        order: The blocks in the order in which they would be checkpointed.
    """

    def __init__(self, loop: Loop, trained: Trainee, item: int, poll: Callable[[], object]) -> None:
        self._loop, self._trained, self._item, self._poll = loop, trained, item, poll
        self._is_known = False  # which blocks write to their inputs
        self.order = list(range(len(trained.blocks)))

    def measure(self, checkpointed: int, pictures: int) -> int | None:
        """Peak bytes of a pass with the first so many blocks of ``order`` checkpointed; None: out of memory."""
        self._poll()
        loop, trained = self._loop, self._trained
        trained.checkpointing(_places(self.order, checkpointed))
        try:
            if checkpointed and not self._is_known:
                look(loop, self._item)  # blocks copy more in the first pass of all
                self._is_known = True
            # Gradients are counted once, with what is to come.
            work = self._peak(lambda: rehearse(loop, self._item, pictures))
            return work - held(loop.parameters.values())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        loop.drop()
        free()
        return None

    def look_at(self) -> Blocks | None:
        """What each block keeps, in ``order`` from here on; None where that cannot be found."""
        self._poll()
        trained = self._trained
        trained.checkpointing(False)
        try:
            found = block_costs(
                trained.diffusion_model,
                trained.blocks,
                lambda: look(self._loop, self._item, with_gradients=True),
                self._loop.parameters.values(),
            )
        except Exception as error:
            if is_interrupt(error):
                raise
            _log.warning("What each block keeps could not be measured: %s", error)
            free()
            return None
        self.order = found.order
        return found

    def _peak(self, work: Callable[[], None]) -> int:
        device = self._trained.device
        module = _meter(device)
        if module is None:
            return peak(work, device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        work()
        return int(module.max_memory_allocated(device) - before)


def _places(order: Sequence[int], checkpointed: int) -> bool | Sequence[int]:
    """What ``Trainee.checkpointing`` takes for the first so many blocks."""
    return checkpointed > 0 if checkpointed in (0, len(order)) else order[:checkpointed]


def _modes(settings: Plan, trained: Trainee) -> Sequence[int]:
    if settings.checkpointing == ON:
        trained.checkpointing(True)  # or there are no blocks, and it says so
    blocks = len(trained.blocks)
    if settings.checkpointing == ON or trained.offloaded is not None:
        return (blocks,)
    return (0,) if settings.checkpointing == OFF or not blocks else (0, blocks)


def _by_size(settings: Plan, trained: Trainee) -> bool:
    if settings.checkpointing != AUTO:
        return settings.checkpointing == ON
    is_large = sum(p.numel() for p in trained.diffusion_model.parameters()) >= LARGE_MODEL
    return is_large and trained.device.type != "cpu"


def _pixels(loop: Loop, trained: Trainee, item: int) -> tuple[int, int]:
    shape: Any = loop.data.buckets[item]
    ratio = getattr(trained.latent_format, "spacial_downscale_ratio", 8)
    return int(shape[-1]) * ratio, int(shape[-2]) * ratio
