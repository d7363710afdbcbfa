# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks belong to a picture and a layer, not to a batch.

A mask is drawn on the CPU by a generator keyed by seed, step, slot in the effective batch and layer, so a batch may be
cut into micro-batches, a block computed again and a run resumed, and the masks stay. Srivastava et al. 2014.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from . import rows


class Draws(Protocol):
    """Uniform draws for the slots of a batch."""

    @property
    def slots(self) -> Sequence[int]:
        """The slots in the effective batch."""

    def rand(self, shape: Sequence[int], purpose: str) -> torch.Tensor:
        """In [0, 1), ``[len(slots), *shape]`` fp32 on the CPU."""

    def only(self, positions: Sequence[int]) -> "Draws":
        """Those of some of the slots."""


class Source:
    """The draws of the batch in hand; None where nothing is dropped out."""

    draws: Draws | None = None


class Masks:
    """The masks of one layer.

    Args:
        source: Where the draws of the batch in hand are.
        name: The layer's.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name

    @property
    def is_on(self) -> bool:
        """Whether anything is dropped out now."""
        return self._source.draws is not None

    def kept(self, count: int, shape: Sequence[int], rate: float, purpose: str) -> torch.Tensor:
        """What stays where ``rate`` of it is dropped out: 1 or 0, ``[count, *shape]`` fp32 on the CPU.

        Args:
            count: Rows of the layer's input: the pictures, or a multiple where each has several rows on end. Rows that
                all pictures share have the first one's mask. (Where the host repeats a short text to the length of a
                long one in the batch, the repeated words have masks of their own.)
            shape: Of one row's mask.
            rate: Probability of a 0.
            purpose: Tells masks of one layer apart.
        """
        draws = self._source.draws
        if draws is None:
            return torch.ones(count, *shape)
        positions = rows.seen()
        if positions is not None:
            draws = draws.only(positions)
        if count % len(draws.slots):
            draws = draws.only([0])
        each = count // len(draws.slots)
        drawn = draws.rand((each, *shape), f"dropout {self._name} {purpose}")
        return (drawn.flatten(0, 1) >= rate).float()
