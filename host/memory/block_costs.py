# SPDX-License-Identifier: Apache-2.0
"""What each block of a network keeps for its backward pass, and how much work it is to compute it again.

Found in one forward pass with gradients in which autograd is given nothing to keep, so that the pass takes no more
memory than one without gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ...trainers.memory_plan import Blocks


def block_costs(
    network: nn.Module,
    blocks: Sequence[nn.Module],
    forward: Callable[[], Any],
    parameters: Iterable[torch.Tensor] = (),
) -> Blocks:
    """Run a network forward and look at what its blocks save.

    Args:
        network: the network; its own weights do not count, copies of them that are made in the pass do.
        blocks: some of its modules in the order in which they are computed, none inside another, not checkpointed.
        forward: runs the network once, with gradients.
        parameters: what is trained, which does not count either.

    Returns:
        Bytes that checkpointing each block alone would free, and the floating-point operations of its forward.
    """
    seen = _Seen([*network.parameters(), *network.buffers(), *parameters])
    work = [0] * len(blocks)
    counter = FlopCounterMode(display=False)
    handles = []
    for place, block in enumerate(blocks):
        enter, leave = _hooks(seen, work, counter, place)
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave))
    try:
        with counter, saved_tensors_hooks(seen.save, _never):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return Blocks(seen.freed(len(blocks)), work)


def _hooks(
    seen: _Seen, work: list[int], counter: FlopCounterMode, place: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        seen.now = place
        seen.stays(tree_leaves((args, kwargs)))
        work[place] -= counter.get_total_flops()

    def leave(*_: Any) -> None:
        seen.now = None
        work[place] += counter.get_total_flops()

    return enter, leave


def _never(_: Any) -> torch.Tensor:
    raise RuntimeError("A pass that was only looked at has no backward.")


class _Seen:
    """Storages that autograd asked to keep, and for which blocks.

    Attributes:
        now: The block that is computed; None between blocks.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self.now: int | None = None
        self._names: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._sizes: list[int] = []
        self._owners: list[set[int | None]] = []
        self.stays(weights)

    def save(self, tensor: torch.Tensor) -> None:
        """Note a tensor that would be kept for the backward pass of the block of now."""
        self._owners[self._name(tensor)].add(self.now)

    def stays(self, values: Sequence[Any]) -> None:
        """Note what no checkpointing frees: weights, and what goes into a block, of which a checkpoint keeps hold."""
        for value in values:
            if isinstance(value, torch.Tensor):
                self._owners[self._name(value)].add(None)

    def freed(self, count: int) -> list[int]:
        """Bytes by block that nothing but the block keeps."""
        sizes = [0] * count
        for size, owners in zip(self._sizes, self._owners, strict=True):
            only = next(iter(owners)) if len(owners) == 1 else None
            if only is not None:
                sizes[only] += size
        return sizes

    def _name(self, tensor: torch.Tensor) -> int:
        """A number of the tensor's storage, which holds as long as the storage lives."""
        storage = tensor.untyped_storage()
        known = self._names.get(id(storage))
        if known is not None and known[0]() is storage:
            return known[1]
        number = len(self._sizes)
        self._names[id(storage)] = (weakref.ref(storage), number)
        self._sizes.append(storage.nbytes())
        self._owners.append(set())
        return number
