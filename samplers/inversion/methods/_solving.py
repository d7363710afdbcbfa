# SPDX-License-Identifier: Apache-2.0
"""What the methods that go up step by step have in common: how exactly they solve a step."""

from dataclasses import dataclass

from ....registry import check_limits, option
from ..backward import LATENT, SLOPE, Effort


@dataclass(frozen=True)
class Solving:
    """Settings of the fixed point."""

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

    def effort(self, sweeps: int = 1) -> Effort:
        """The settings in one value."""
        return Effort(self.iterations, self.tolerance, self.guess, sweeps)
