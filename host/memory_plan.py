# SPDX-License-Identifier: Apache-2.0
"""The memory plan of a run on the host's device: measured, chosen, and put in words.

A GPU's allocator knows the peak of a pass; elsewhere the bytes of tensors are counted, operator by operator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..trainers.allocations import held, peak
from ..trainers.loop import Loop
from ..trainers.memory_plan import (
    MIB,
    Choice,
    choose,
    kept_now,
    largest_item,
    look,
    rehearse,
    to_come,
)
from ..trainers.plan import Plan
from .checkpointing import find_blocks
from .memory import free, is_out_of_memory
from .stopping import is_interrupt
from .trainee import Trainee

# Parameters from which "auto" checkpoints on a GPU that cannot be measured.
LARGE_MODEL = 500_000_000
# Of the free memory is planned with: allocators waste some, and other programs come and go.
SPARE = 0.9
GRID = 64  # pixels that a proposed size is a multiple of
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Bytes on the device.

    Attributes:
        held: What is there before the first step: weights, and on a GPU whatever else torch keeps.
        to_come: Gradients and the optimizer's state.
        total: What all of it, and a pass, may take.
        is_limit: Whether the user set ``total``.
    """

    held: int
    to_come: int
    total: int
    is_limit: bool

    @property
    def passes(self) -> int:
        """What is left for one forward and backward pass."""
        return self.total - self.held - self.to_come


def plan(
    loop: Loop,
    trained: Trainee,
    poll: Callable[[], object] = lambda: None,
    tell: Callable[[str], object] = lambda text: None,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Choose micro-batch and checkpointing for the memory that there is, and set both.

    Nothing is measured on a CPU without a limit, nor where neither the device nor the user says how much there is.

    Args:
        loop: The run, before its first step.
        trained: The trainee.
        poll: Called before every pass; may raise to interrupt.
        tell: Told what is done.
        warn: Told what the user should know.

    Returns:
        Facts for the log: ``gradient checkpointing``, and where it was measured, ``memory plan``.

    Raises:
        ValueError: Not even one picture fits into the limit; says what would.
    """
    settings = loop.plan
    if settings.memory_limit == 0 and _meter(trained.device) is None:
        trained.checkpointing(_by_size(settings, trained))
        return {"gradient checkpointing": trained.is_checkpointed}
    tell("measuring memory")
    item, wish = largest_item(loop.data.buckets), settings.batch_size
    try:
        room = _room(loop, trained)
        measure = _measure(loop, trained, item, poll)
        modes = _modes(settings, trained)
        choice = choose(measure, wish, settings.effective_batch, room.passes, modes)
    except Exception as error:
        if is_interrupt(error):
            raise
        return _unmeasured(loop, trained, warn, error)
    trained.checkpointing(choice.is_checkpointed)
    if choice.micro_batch == 0:
        text = refusal(choice, room, settings, _pixels(loop, trained, item))
        if room.is_limit or not choice.passes:
            raise ValueError(text)
        warn(f"{text} It is tried all the same.")
    loop.memory.micro_batch = choice.micro_batch or 1
    text = line(choice, room, wish)
    loop.memory.told.append(text)
    tell(text)
    return {"gradient checkpointing": choice.is_checkpointed, "memory plan": text}


def _unmeasured(
    loop: Loop, trained: Trainee, warn: Callable[[str], object], error: Exception
) -> dict[str, Any]:
    """Train as if nothing had been measured: what is wrong is not to end a run that may well fit."""
    _log.exception("The memory could not be measured")
    loop.drop()
    free()
    trained.checkpointing(_by_size(loop.plan, trained))
    warn(
        f"The memory could not be measured ({type(error).__name__}: {error}): batch_size is taken as it is. Should it "
        "run out, the step begins again with fewer pictures in a pass."
    )
    return {"gradient checkpointing": trained.is_checkpointed}


def line(choice: Choice, room: Room, wish: int) -> str:
    """The plan in a line.

    Args:
        choice: What is done.
        room: What there is.
        wish: The micro-batch that was asked for.
    """
    size = choice.micro_batch or 1
    needs = choice.passes[choice.is_checkpointed](size)
    whole = room.held + room.to_come + needs
    said = [
        f"memory plan: {size} of {wish} pictures in a forward pass, checkpointing "
        f"{'on' if choice.is_checkpointed else 'off'}: {_mib(whole)} of {_mib(room.total)} MiB",
        f"there before {_mib(room.held)}, gradients and optimizer {_mib(room.to_come)}, the pass {_mib(needs)}",
    ]
    if size < wish or choice.is_checkpointed:
        others = [
            f"{_mib(found(wish))} {'with' if is_checkpointed else 'without'} checkpointing"
            for is_checkpointed, found in choice.passes.items()
        ]
        said.append(f"a pass of {wish} would take {', '.join(others)}")
    return "; ".join(said)


def refusal(choice: Choice, room: Room, settings: Plan, pixels: tuple[int, int]) -> str:
    """What does not fit, and what would.

    Args:
        choice: The estimates.
        room: What there is.
        settings: Batch size, checkpointing and limit that were asked for.
        pixels: Width and height of the largest pictures.
    """
    source = "memory_limit allows" if room.is_limit else "there are"
    least = min((found(1) for found in choice.passes.values()), default=None)
    mode = "with" if True in choice.passes or settings.checkpointing != "off" else "without"
    fixed = room.held + room.to_come
    head = (
        f"one picture of {pixels[0]} x {pixels[1]} in a forward pass {mode} gradient checkpointing"
    )
    parts = f"{_mib(room.held)} there before, {_mib(room.to_come)} gradients and optimizer"
    if least is None:
        return (
            f"Out of memory with {head}; {source} {_mib(room.total)} MiB ({parts}). Train at a smaller resolution, "
            "with a lower rank or on fewer blocks, or take a smaller model."
        )
    ways = [f"{_mib(fixed + least)} MiB"]
    if settings.checkpointing == "off":
        ways.append("checkpointing auto")
    share = max(room.passes, 0) / max(least, 1)
    smaller = [math.floor(side * math.sqrt(share) / GRID) * GRID for side in pixels]
    if min(smaller) >= GRID:
        ways.append(f"pictures of about {smaller[0]} x {smaller[1]}")
    elif room.passes <= 0:
        ways.append("a smaller model, or a lower rank")
    return (
        f"Not enough memory: {head} takes {_mib(fixed + least)} MiB ({parts}, {_mib(least)} the pass), and {source} "
        f"{_mib(room.total)} MiB. What would do: {'; or '.join(ways)}."
    )


def _room(loop: Loop, trained: Trainee) -> Room:
    import comfy.model_management as mm

    free()
    device, limit = trained.device, loop.plan.memory_limit * MIB
    module = _meter(device)
    if module is None:
        model = trained.model
        there = held([*model.parameters(), *model.buffers()]) + kept_now(loop)
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


def _measure(
    loop: Loop, trained: Trainee, item: int, poll: Callable[[], object]
) -> Callable[[bool, int], int | None]:
    module, device = _meter(trained.device), trained.device

    def bytes_of(work: Callable[[], None]) -> int:
        if module is None:
            return peak(work, device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        work()
        return int(module.max_memory_allocated(device) - before)

    def measure(is_checkpointed: bool, pictures: int) -> int | None:
        poll()
        was = trained.is_checkpointed
        trained.checkpointing(is_checkpointed)
        try:
            if is_checkpointed and not was:
                look(loop, item)  # blocks copy more in the first pass of all
            # Gradients are counted once, with what is to come.
            return bytes_of(lambda: rehearse(loop, item, pictures)) - held(loop.parameters.values())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        loop.drop()
        free()
        return None

    return measure


def _modes(settings: Plan, trained: Trainee) -> Sequence[bool]:
    if settings.checkpointing != "auto":
        return (settings.checkpointing == "on",)
    try:
        find_blocks(trained.diffusion_model)
    except ValueError:
        return (False,)
    return (False, True)


def _by_size(settings: Plan, trained: Trainee) -> bool:
    if settings.checkpointing != "auto":
        return settings.checkpointing == "on"
    is_large = sum(p.numel() for p in trained.diffusion_model.parameters()) >= LARGE_MODEL
    return is_large and trained.device.type != "cpu"


def _pixels(loop: Loop, trained: Trainee, item: int) -> tuple[int, int]:
    shape: Any = loop.data.buckets[item]
    ratio = getattr(trained.latent_format, "spacial_downscale_ratio", 8)
    return int(shape[-1]) * ratio, int(shape[-2]) * ratio


def _mib(size: int) -> str:
    return f"{math.ceil(size / MIB):,}"
