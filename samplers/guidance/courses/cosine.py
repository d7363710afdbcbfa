# SPDX-License-Identifier: Apache-2.0
"""A strength that runs along half a cosine."""

import math
from dataclasses import dataclass

from ....registry import check_limits, option
from ..parts import COURSES


@COURSES.register("cosine")
@dataclass(frozen=True)
class Cosine:
    """From the whole strength to a share of it, slowly at both ends."""

    last: float = option(0.0, "Share of the strength at the end; above 1 it rises.", min=0.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, progress: float) -> float:
        """The share of the strength."""
        return self.last + (1.0 - self.last) * 0.5 * (1.0 + math.cos(math.pi * progress))
