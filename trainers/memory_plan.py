# SPDX-License-Identifier: Apache-2.0
"""How large a micro-batch fits, and which blocks have to be recomputed: found before the first step.

The memory of a step is that of the weights, the gradients, the optimizer's state, and what one forward and backward
pass makes; the last grows by the same bytes with each picture. So two passes, over 1 and 2 pictures of the largest
size, tell what any number of them takes. The effective batch stays, and with it the mathematics.

Where at least one picture fits without checkpointing, the effective batch goes through in as few passes as fit so.
Where none does, one picture goes through at a time, and as few blocks are recomputed as make it fit: those first that
give back the most bytes for the work of computing them again.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from .allocations import held
from .loop import Loop
from .optimizers import Optimizer
from .random import Draws

MIB = 2**20
TRIES = 5  # passes that are measured to find the fewest blocks
Measure = Callable[[int, int], int | None]


@dataclass(frozen=True)
class Estimate:
    """Peak bytes of a pass over n pictures: ``fixed + each * n``; more than ``most`` have run out of memory."""

    fixed: int
    each: int
    most: int = 2**31

    def __call__(self, pictures: int) -> int:
        """Bytes for so many pictures."""
        return self.fixed + self.each * pictures

    def largest(self, room: int, wish: int) -> int:
        """The most pictures up to ``wish`` that take no more than ``room``; 0 when not even one."""
        return next((n for n in range(min(wish, self.most), 0, -1) if self(n) <= room), 0)


@dataclass(frozen=True)
class Blocks:
    """What the blocks of a network keep for the backward pass of one picture.

    Attributes:
        saved: Bytes by block, in the order in which they are computed.
        work: What computing each again costs, in any unit.
    """

    saved: Sequence[int]
    work: Sequence[int]

    @property
    def order(self) -> list[int]:
        """The blocks by the bytes that checkpointing them gives back for a unit of work, the most first."""
        return sorted(
            range(len(self.saved)), key=lambda i: (-self.saved[i] / max(self.work[i], 1), i)
        )

    def kept(self, checkpointed: Collection[int]) -> int:
        """The most bytes of all blocks' together in the backward pass.

        It goes from the last block to the first: when a checkpointed block is computed again, its bytes are there for a
        while, and those of the blocks before it that are not checkpointed still are.

        Args:
            checkpointed: Blocks that are computed again.

        Returns:
            Bytes.
        """
        below, most = 0, 0
        for i, size in enumerate(self.saved):
            most = max(most, below + size)
            below += 0 if i in checkpointed else size
        return most


@dataclass(frozen=True)
class Choice:
    """What fits: ``micro_batch`` is 0 where nothing does. ``passes`` has the estimates by blocks checkpointed."""

    micro_batch: int
    checkpointed: int
    passes: Mapping[int, Estimate]


def estimate(measure: Measure, checkpointed: int, wish: int, room: int) -> Estimate | None:
    """Measure passes over one and two pictures.

    Args:
        measure: Peak bytes of a pass, by blocks checkpointed and number of pictures; None where the memory runs out.
        checkpointed: How many blocks are recomputed.
        wish: The most pictures that are wanted.
        room: Bytes that there are.

    Returns:
        The peak by the number of pictures; None when not even one can be measured.
    """
    one = measure(checkpointed, 1)
    if one is None:
        return None
    if wish == 1 or one >= room:
        return Estimate(
            0, one
        )  # all of it is taken for the picture's: too much for several, never too little
    two = measure(checkpointed, 2)
    if two is None:
        return Estimate(0, one, most=1)
    each = max(two - one, 0)
    return Estimate(one - each, each)


def choose(
    measure: Measure,
    wish: int,
    effective: int,
    room: int,
    modes: Sequence[int],
    look_at: Callable[[], Blocks | None] = lambda: None,
) -> Choice:
    """The largest micro-batch that fits without checkpointing, else one picture with as few blocks as make it fit.

    Args:
        measure: As for ``estimate``; of several blocks it takes the first of ``Blocks.order``.
        wish: The micro-batch that is wanted.
        effective: Pictures in a step; a smaller micro-batch is chosen to cut them into even parts.
        room: Bytes that there are for a pass.
        modes: How many blocks to checkpoint, in the order of preference; with more than one, the last is all of them.
        look_at: What the blocks keep; asked where no mode but the last fits. None: that is not known.

    Returns:
        What to train with.
    """
    passes: dict[int, Estimate] = {}
    for checkpointed in modes:
        is_last_of_several = checkpointed == modes[-1] and len(modes) > 1
        blocks = look_at() if is_last_of_several else None
        most = 1 if blocks is not None else wish
        found = estimate(measure, checkpointed, most, room)
        if found is None:
            continue
        passes[checkpointed] = found
        size = found.largest(room, most)
        if size and blocks is not None:
            none = passes[modes[0]](1) if modes[0] in passes else None
            fewest, needs = fewest_blocks(measure, blocks, (none, found(1)), room)
            passes[fewest] = Estimate(0, needs)
            return Choice(1, fewest, passes)
        if 0 < size < wish:
            size = math.ceil(effective / math.ceil(effective / size))
        if size:
            return Choice(size, checkpointed, passes)
    return Choice(0, modes[-1], passes)


def fewest_blocks(
    measure: Measure, blocks: Blocks, ends: tuple[int | None, int], room: int
) -> tuple[int, int]:
    """The fewest blocks of ``Blocks.order`` whose checkpointing makes one picture fit.

    What a number of blocks needs is foretold from the bytes that they keep, in proportion between two numbers that were
    measured, and then measured itself.

    Args:
        measure: As for ``choose``.
        blocks: What the blocks keep.
        ends: Peak bytes with no block checkpointed, which do not fit (None: more than there are), and with all, which
            do.
        room: Bytes that there are for a pass.

    Returns:
        How many, and the peak that was measured with them.
    """
    order = blocks.order
    kept = [blocks.kept(order[:count]) for count in range(len(order) + 1)]
    (needs_more, needs), (too_few, enough) = ends, (0, len(order))
    least = 0
    for _ in range(TRIES):
        span = kept[too_few] - kept[enough]
        slope = 1.0 if needs_more is None or not span else (needs_more - needs) / span
        allowed = kept[enough] + (room - needs) / max(slope, 1e-9)
        untried = range(max(too_few + 1, least), enough)
        count, least = next((n for n in untried if kept[n] <= allowed), None), 0
        if count is None:
            break
        measured = measure(count, 1)
        if measured is not None and measured <= room:
            enough, needs = count, measured
            continue
        too_few, needs_more = count, measured
        if measured is None:  # by how much it was too large is not known
            least = (count + enough + 1) // 2
    return enough, needs


def rehearse(loop: Loop, item: int, pictures: int) -> None:
    """Do one forward and backward pass as in a step, and leave no trace of it.

    Args:
        loop: The run; its draws are keyed, so that none is used up.
        item: The picture that fills all slots.
        pictures: How many slots.
    """
    for parameter in loop.parameters.values():
        parameter.grad = torch.zeros_like(parameter)  # as in every pass but a step's first
    try:
        for _ in loop.backward([item] * pictures, range(pictures)):
            pass
    finally:
        loop.drop()


def look(loop: Loop, item: int, *, with_gradients: bool = False) -> None:
    """Do one forward pass of a picture, without gradients unless they are asked for."""
    draws = Draws(loop.plan.seed, loop.step, [0], loop.plan.effective_batch)
    batch = next(iter(loop.data.batches([item], draws)))
    noised = loop.objective.noised(loop.denoiser, batch.latents, draws)
    with torch.set_grad_enabled(with_gradients):
        loop.denoiser(noised.x, noised.sigma, batch.cond)


def largest_item(buckets: Sequence[object]) -> int:
    """The number of a picture of the largest bucket, where buckets are shapes; else the first picture."""

    def size(index: int) -> int:
        shape = buckets[index]
        is_shape = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
        return math.prod(shape) if is_shape and isinstance(shape, tuple) else 0

    return max(range(len(buckets)), key=size)


def to_come(loop: Loop) -> int:
    """Bytes of the gradients and of what the optimizer does not keep yet."""
    parameters = loop.parameters.values()
    state = loop.stepper.algorithm.state.values()
    kept = [v for entry in state for v in entry.values() if isinstance(v, torch.Tensor)]
    optimizer = max(0, state_bytes(loop.optimizer, list(parameters)) - held(kept))
    return held(parameters) + optimizer


def kept_now(loop: Loop) -> int:
    """Bytes of the trained parameters, their averages, and what the optimizer keeps by now."""
    parameters = held(loop.parameters.values())
    averages = parameters if loop.stepper.ema is not None else 0
    state = loop.stepper.algorithm.state.values()
    kept = held(v for entry in state for v in entry.values() if isinstance(v, torch.Tensor))
    return parameters + averages + kept


def state_bytes(settings: Optimizer, parameters: Sequence[torch.nn.Parameter]) -> int:
    """Ask an optimizer what it keeps for parameters once it has stepped, on one copy of each shape.

    Args:
        settings: Algorithm and what belongs to it.
        parameters: The trained parameters; they are not touched.

    Returns:
        Bytes.
    """
    counts: dict[tuple[int, ...], int] = {}
    for parameter in parameters:
        counts[tuple(parameter.shape)] = counts.get(tuple(parameter.shape), 0) + 1
    device = torch.device("cpu")
    try:
        settings.check(device)
    except ValueError:  # it steps on a GPU only
        device = parameters[0].device
    copies = [torch.nn.Parameter(torch.full(shape, 0.1, device=device)) for shape in counts]
    algorithm = settings.algorithm.build(copies)
    for copy in copies:
        copy.grad = torch.full_like(copy, 1e-3)
    algorithm.step()
    return sum(
        count * held(v for v in algorithm.state[copy].values() if isinstance(v, torch.Tensor))
        for copy, count in zip(copies, counts.values(), strict=True)
    )
