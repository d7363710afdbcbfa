# SPDX-License-Identifier: Apache-2.0
"""A strength that runs along a straight line."""

from dataclasses import dataclass

from ....registry import check_limits, option
from ..parts import COURSES


@COURSES.register("linear")
@dataclass(frozen=True)
class Linear:
    """From the whole strength to a share of it, in equal parts."""

    last: float = option(0.0, "Share of the strength at the end; above 1 it rises.", min=0.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, progress: float) -> float:
        """The share of the strength."""
        return 1.0 + (self.last - 1.0) * progress
