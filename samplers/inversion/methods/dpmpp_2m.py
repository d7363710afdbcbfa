# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++(2M) backward; its steps look at the one before, so that they are solved in sweeps (Hong et al. 2024)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from ....registry import option
from ..backward import Effort
from ..parts import INVERSIONS
from ._solving import Solving


@INVERSIONS.register("dpmpp-2m")
@dataclass(frozen=True)
class InvertDPMpp2M(Solving):
    """x with S(x, D of the level above) = x', S a step of dpmpp-2m down."""

    sampler: ClassVar[str] = "dpmpp-2m"
    looks_back: ClassVar[bool] = True

    sweeps: int = option(
        6,
        "How often dpmpp-2m goes over all levels, for D of the level above that its steps look at; each more "
        "brings the way down nearer to the picture.",
        min=1,
        max=100,
    )

    @property
    def effort(self) -> Effort:
        """The settings in one value."""
        return replace(super().effort, sweeps=self.sweeps)
