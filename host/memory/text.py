# SPDX-License-Identifier: Apache-2.0
"""The memory plan in words: what is done, what does not fit, and what would."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...trainers.allocations import held
from ...trainers.memory_plan import MIB, Choice
from ...trainers.plan import OFF, Plan

if TYPE_CHECKING:
    from ..model.trainee import Trainee

GRID = 64  # pixels that a proposed size is a multiple of


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


def line(choice: Choice, blocks: int, room: Room, wish: int) -> str:
    """The plan in a line.

    Args:
        choice: What is done.
        blocks: How many blocks can be checkpointed.
        room: What there is.
        wish: The micro-batch that was asked for.
    """
    size, count = choice.micro_batch or 1, choice.checkpointed
    needs = choice.passes[count](size)
    whole = room.held + room.to_come + needs
    is_some = 0 < count < blocks
    mode = some_blocks(count, blocks) if is_some else "on" if count else "off"
    said = [
        f"memory plan: {size} of {wish} pictures in a forward pass, checkpointing {mode}: "
        f"{_mib(whole)} of {_mib(room.total)} MiB",
        f"there before {_mib(room.held)}, gradients and optimizer {_mib(room.to_come)}, the pass {_mib(needs)}",
    ]
    others = {
        f"{_mib(found(1 if is_some else wish))} {_with(asked, blocks)} checkpointing"
        for asked, found in choice.passes.items()
        if asked in (0, blocks)
    }
    if size < wish or count:
        which = "1" if is_some else str(wish)
        said.append(f"a pass of {which} would take {', '.join(sorted(others, reverse=True))}")
    return "; ".join(said)


def some_blocks(count: int, blocks: int) -> str:
    """How many of the blocks."""
    return f"{count} of {blocks} blocks"


def offload_line(trained: Trainee) -> str:
    """Which weights are on the CPU, and what that costs."""
    offloaded = trained.offloaded
    if offloaded is None:
        return ""
    largest = offloaded.largest(trained.compute_dtype)
    text = (
        f"offload: the weights of {len(offloaded.blocks)} blocks ({_mib(held(offloaded.parameters))} MiB) are kept on "
        f"the CPU, and those of one block at a time are on the device ({_mib(largest)} MiB at most); every pass copies "
        "all of them there twice, which is slower"
    )
    if trained.device.type == "cpu":
        text += "; this device is the CPU itself, which saves nothing: memory_limit counts as if it were another"
    return text


def refusal(
    choice: Choice, blocks: int, room: Room, settings: Plan, pixels: tuple[int, int]
) -> str:
    """What does not fit, and what would.

    Args:
        choice: The estimates.
        blocks: How many blocks can be checkpointed.
        room: What there is.
        settings: Batch size, checkpointing, offloading and limit that were asked for.
        pixels: Width and height of the largest pictures.
    """
    source = "memory_limit allows" if room.is_limit else "there are"
    least = min((found(1) for found in choice.passes.values()), default=None)
    is_checkpointed = max(choice.passes, default=0) > 0 or settings.checkpointing != OFF
    fixed = room.held + room.to_come
    head = (
        f"one picture of {pixels[0]} x {pixels[1]} in a forward pass "
        f"{'with' if is_checkpointed and blocks else 'without'} gradient checkpointing"
    )
    parts = f"{_mib(room.held)} there before, {_mib(room.to_come)} gradients and optimizer"
    ways = []
    if settings.checkpointing == OFF and blocks:
        ways.append("checkpointing auto")
    if settings.offload == OFF and blocks:
        ways.append("offload auto")
    if least is None:
        more = "".join(f" set {way}," for way in ways)
        return (
            f"Out of memory with {head}; {source} {_mib(room.total)} MiB ({parts}). What may do:{more} a smaller "
            "resolution, a lower rank or fewer blocks, or a smaller model."
        )
    share = max(room.passes, 0) / max(least, 1)
    smaller = [math.floor(side * math.sqrt(share) / GRID) * GRID for side in pixels]
    if min(smaller) >= GRID:
        ways.append(f"pictures of about {smaller[0]} x {smaller[1]}")
    elif room.passes <= 0:
        ways.append("a smaller model, or a lower rank")
    return (
        f"Not enough memory: {head} takes {_mib(fixed + least)} MiB ({parts}, {_mib(least)} the pass), and {source} "
        f"{_mib(room.total)} MiB. What would do: {'; or '.join([f'{_mib(fixed + least)} MiB', *ways])}."
    )


def _with(checkpointed: int, blocks: int) -> str:
    return "with" if checkpointed and checkpointed == blocks else "without"


def _mib(size: int) -> str:
    return f"{math.ceil(size / MIB):,}"
