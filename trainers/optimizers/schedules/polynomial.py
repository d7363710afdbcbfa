# SPDX-License-Identifier: Apache-2.0
"""Polynomial decay after a linear warm-up: diffusers' ``polynomial``."""

from dataclasses import dataclass

from ....registry import check_limits, option
from .. import SCHEDULES


@SCHEDULES.register("polynomial")
@dataclass(frozen=True)
class Polynomial:
    """From 1 at the end of the warm-up to ``floor`` at the last step, fast at first for a power above 1."""

    warmup: int = option(0, "Steps in which the learning rate rises from 0.", min=0)
    power: float = option(2.0, "Exponent; 1 is linear.", min=0.01, max=100.0)
    floor: float = option(0.0, "Fraction of the peak that is left at the end.", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def factor(self, step: int, total: int) -> float:
        """The factor for ``step`` (from 0) of ``total``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, total - 1 - self.warmup)
        left: float = max(0.0, 1 - progress) ** self.power
        return (1 - self.floor) * left + self.floor
