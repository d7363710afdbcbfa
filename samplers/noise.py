# SPDX-License-Identifier: Apache-2.0
"""Noise that samplers add on their way: of a seed, a level and a place in the batch, and of nothing else.

A sample is the same in a batch of any size, and levels that are split over two nodes draw what they drew in one.
"""

from dataclasses import dataclass

import torch

from ..keyed import generator


@dataclass(frozen=True)
class KeyedNoise:
    """Implements ``Noise``; drawn in fp32 on the CPU."""

    seed: int

    def __call__(self, like: torch.Tensor, sigma: float) -> torch.Tensor:
        """Standard normal noise like ``like`` ``[B, ...]``, for the step that begins at ``sigma``."""
        purpose = f"sampling at {sigma:.9g}"  # nine digits tell any two fp32 numbers apart
        rows = [
            torch.randn(like.shape[1:], generator=generator(self.seed, purpose, slot))
            for slot in range(like.shape[0])
        ]
        return torch.stack(rows).to(like)
