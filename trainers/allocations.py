# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes of the tensors that operators make, for as long as they live, on any device.

On a GPU the allocator keeps this figure itself; here it is counted operator by operator, forward, backward and
recomputed parts alike. What a kernel needs inside itself and gives back is not seen. It works on the device `meta`,
too, where tensors have a size but no memory.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts while its block lasts.

    Args:
        device: Only tensors there count.

    Attributes:
        live: Bytes of what was made in the block and lives now.
        peak: The most that it ever was.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.live = self.peak = 0
        self._type = torch.device(device).type
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator, and count what it returns unless that is a view of what went in."""
        out = func(*args, **(kwargs or {}))
        made = [s for s in _storages(out, self._type) if id(s) not in self._known]
        if made:
            given = {id(s) for s in _storages((args, kwargs), self._type)}
            for storage in made:
                if id(storage) not in given:
                    self._add(storage)
            self.peak = max(self.peak, self.live)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        # One Python object belongs to a storage for its whole life, whoever asks for it.
        self._known[key] = weakref.ref(storage, gone)
        self.live += size


def peak(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes that live at once of what ``work`` makes on ``device``."""
    with Allocations(device) as counted:
        work()
    return counted.peak


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of ``tensors``, each once."""
    return sum({id(s): s.nbytes() for s in map(torch.Tensor.untyped_storage, tensors)}.values())


def _storages(tree: Any, device_type: str) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor)
        and leaf.device.type == device_type
        and leaf.layout == torch.strided
    ]
