# SPDX-License-Identifier: Apache-2.0
"""How large a micro-batch fits, and whether blocks have to be recomputed: found before the first step.

The memory of a step is that of the weights, the gradients, the optimizer's state, and what one forward and backward
pass makes; the last grows by the same bytes with each picture. So two passes, over 1 and 2 pictures of the largest
size, tell what any number of them takes. The effective batch stays, and with it the mathematics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .allocations import held
from .loop import Loop
from .optimizers import Optimizer
from .random import Draws

MIB = 2**20
Measure = Callable[[bool, int], int | None]


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
class Choice:
    """What fits: ``micro_batch`` is 0 where nothing does. ``passes`` has the estimates by checkpointing."""

    micro_batch: int
    is_checkpointed: bool
    passes: Mapping[bool, Estimate]


def estimate(measure: Measure, is_checkpointed: bool, wish: int, room: int) -> Estimate | None:
    """Measure passes over one and two pictures.

    Args:
        measure: Peak bytes of a pass, by checkpointing and number of pictures; None where the memory runs out.
        is_checkpointed: Whether blocks are recomputed.
        wish: The most pictures that are wanted.
        room: Bytes that there are.

    Returns:
        The peak by the number of pictures; None when not even one can be measured.
    """
    one = measure(is_checkpointed, 1)
    if one is None:
        return None
    if wish == 1 or one >= room:
        return Estimate(
            0, one
        )  # all of it is taken for the picture's: too much for several, never too little
    two = measure(is_checkpointed, 2)
    if two is None:
        return Estimate(0, one, most=1)
    each = max(two - one, 0)
    return Estimate(one - each, each)


def choose(
    measure: Measure, wish: int, effective: int, room: int, modes: Sequence[bool] = (False, True)
) -> Choice:
    """The largest micro-batch that fits, without checkpointing if that is possible at all.

    Args:
        measure: As for ``estimate``.
        wish: The micro-batch that is wanted.
        effective: Pictures in a step; a smaller micro-batch is chosen to cut them into even parts.
        room: Bytes that there are for a pass.
        modes: Whether to checkpoint, in the order of preference.

    Returns:
        What to train with.
    """
    passes: dict[bool, Estimate] = {}
    for is_checkpointed in modes:
        found = estimate(measure, is_checkpointed, wish, room)
        if found is None:
            continue
        passes[is_checkpointed] = found
        size = found.largest(room, wish)
        if 0 < size < wish:
            size = math.ceil(effective / math.ceil(effective / size))
        if size:
            return Choice(size, is_checkpointed, passes)
    return Choice(0, modes[-1], passes)


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


def look(loop: Loop, item: int) -> None:
    """Do one forward pass of a picture without gradients."""
    draws = Draws(loop.plan.seed, loop.step, [0], loop.plan.effective_batch)
    batch = next(iter(loop.data.batches([item], draws)))
    noised = loop.objective.noised(loop.denoiser, batch.latents, draws)
    with torch.no_grad():
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
