# SPDX-License-Identifier: Apache-2.0
"""Linear decay after a linear warm-up: diffusers' ``linear``."""

from dataclasses import dataclass

from ....registry import check_limits, option
from .. import SCHEDULES


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear:
    """From 1 at the end of the warm-up to ``floor`` at the last step."""

    warmup: int = option(0, "Steps in which the learning rate rises from 0.", min=0)
    floor: float = option(0.0, "Fraction of the peak that is left at the end.", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def factor(self, step: int, total: int) -> float:
        """The factor for ``step`` (from 0) of ``total``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        way = total - 1 - self.warmup
        # A single step after the warm-up is at the peak, as with all others; the library has 0 here alone.
        left = (total - 1 - step) / way if way > 0 else 1.0
        return self.floor + (1 - self.floor) * max(0.0, left)
