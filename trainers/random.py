# SPDX-License-Identifier: Apache-2.0
"""Counter-based randomness: every draw has a generator of its own.

A generator is keyed by (seed, step, slot in the effective batch, purpose), so a draw does not depend
on how a batch is cut into micro-batches, on what was drawn before, or on where a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..keyed import generator


def normal(
    shape: Sequence[int], seed: int, step: int, slots: Sequence[int], purpose: str = "noise"
) -> torch.Tensor:
    """Standard normal noise, ``[len(slots), *shape]`` fp32 on the CPU, one generator a slot."""
    rows = [
        torch.randn(tuple(shape), generator=generator(seed, purpose, step, slot)) for slot in slots
    ]
    return torch.stack(rows)


def uniform(seed: int, step: int, slots: Sequence[int], purpose: str) -> torch.Tensor:
    """Uniform draws in [0, 1), ``[len(slots)]`` fp64 on the CPU, one generator a slot."""
    rows = [
        torch.rand((), generator=generator(seed, purpose, step, slot), dtype=torch.float64)
        for slot in slots
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class Draws:
    """The draws of some slots of one step's effective batch of ``batch`` slots, each by its purpose."""

    seed: int
    step: int
    slots: Sequence[int]
    batch: int
    use: str = ""

    def of(self, use: str) -> "Draws":
        """Other draws for the same slots, for a second use in the step; the first one's for ``""``."""
        return replace(self, use=f"{use} " if use else "")

    def uniform(self, purpose: str) -> torch.Tensor:
        """Uniform draws in [0, 1), ``[len(slots)]`` fp64 on the CPU."""
        return uniform(self.seed, self.step, self.slots, self.use + purpose)

    def stratified(self, purpose: str) -> torch.Tensor:
        """Uniform draws in [0, 1), one from each of ``batch`` equal parts of it, ``[len(slots)]`` fp64 on the CPU."""
        turn = generator(self.seed, f"{self.use}{purpose} strata", self.step)
        part = torch.randperm(self.batch, generator=turn)[list(self.slots)]
        return ((part + self.uniform(purpose)) / self.batch).clamp(max=1 - 2.0**-53)

    def only(self, positions: Sequence[int]) -> "Draws":
        """Those of the slots at some positions."""
        return replace(self, slots=[self.slots[position] for position in positions])

    def rand(self, shape: Sequence[int], purpose: str) -> torch.Tensor:
        """Uniform draws in [0, 1), ``[len(slots), *shape]`` fp32 on the CPU, one generator a slot."""
        made = [
            torch.rand(
                tuple(shape),
                generator=generator(self.seed, self.use + purpose, self.step, slot),
            )
            for slot in self.slots
        ]
        return torch.stack(made)

    def normal(self, shape: Sequence[int], purpose: str = "noise") -> torch.Tensor:
        """Standard normal noise, ``[len(slots), *shape]`` fp32 on the CPU."""
        return normal(shape, self.seed, self.step, self.slots, self.use + purpose)
