# SPDX-License-Identifier: Apache-2.0
"""What the methods that go up step by step have in common: how exactly they solve a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..backward import LATENT, SLOPE, Effort, backward
from ..parts import Inversion, Watch


@dataclass(frozen=True)
class Solving:
    """Settings of the fixed point.

    Attributes:
        sampler: Name of the one whose steps are gone backward.
        looks_back: Whether its steps look at the one before.
    """

    is_drawn: ClassVar[bool] = False
    sampler: ClassVar[str]
    looks_back: ClassVar[bool] = False

    iterations: int = option(
        5,
        "Most evaluations of the model at each level, until its step down leads back; 1 is the classic inversion.",
        min=1,
        max=100,
    )
    tolerance: float = option(
        1e-5,
        "Error of a step, in units of the latent's spread, at which they end.",
        min=0.0,
        max=1.0,
    )
    guess: str = option(
        SLOPE,
        "Where they begin: slope goes on as the step below went; latent is the latent below, as in DDIM inversion of "
        "old.",
        choices=(SLOPE, LATENT),
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def effort(self) -> Effort:
        """The settings in one value."""
        return Effort(self.iterations, self.tolerance, self.guess)

    def invert(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        sigmas: Sequence[float],
        noise: Noise,
        *,
        levels: Levels | None = None,
        watch: Watch | None = None,
    ) -> Inversion:
        """The inversion of a latent ``[B, ...]``; it draws nothing."""
        sampler, looks_back = SAMPLERS.get(self.sampler)(), self.looks_back
        return backward(
            sampler,
            denoise,
            x,
            sigmas,
            self.effort,
            looks_back=looks_back,
            levels=levels,
            watch=watch,
        )
