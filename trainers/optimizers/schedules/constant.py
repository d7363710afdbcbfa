# SPDX-License-Identifier: Apache-2.0
"""A constant learning rate after a linear warm-up."""

from dataclasses import dataclass

from ....registry import check_limits, option
from .. import SCHEDULES


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant:
    """1 after the warm-up."""

    warmup: int = option(0, "Steps in which the learning rate rises from 0.", min=0)

    def __post_init__(self) -> None:
        check_limits(self)

    def factor(self, step: int, total: int) -> float:
        """(step + 1) / (warmup + 1) in the warm-up, then 1."""
        return min(1.0, (step + 1) / (self.warmup + 1))
