# SPDX-License-Identifier: Apache-2.0
"""The time steps that LCM and TCD models were distilled at (Luo et al. 2023; arXiv 2310.04378), as diffusers has them.

Every k-th step of the model is one of the distillation's: k - 1, 2 k - 1, ...; sampling takes some of these, evenly.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import check_limits, option
from ..parts import SCHEDULES, Levels


@SCHEDULES.register("distilled")
@dataclass(frozen=True)
class Distilled:
    """Times of an evenly spaced part of the steps of a distillation, from the highest."""

    needs_model: ClassVar[bool] = True

    original_steps: int = option(
        50, "How many steps the model was distilled with.", min=1, max=1000
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        if model is None or model.times is None:
            raise ValueError(
                "The schedule distilled is for eps and v models with time steps; this MODEL has none. Take karras."
            )
        if steps > self.original_steps:
            raise ValueError(
                f"steps is {steps}, and the model was distilled with {self.original_steps}: take at most these, or set "
                "original_steps."
            )
        last = int(model.times[-1]) + 1
        every = max(last // self.original_steps, 1)
        falling = [every * i - 1 for i in range(self.original_steps, 0, -1)]
        chosen = [falling[self.original_steps * i // steps] for i in range(steps)]
        return torch.tensor([model.sigma(time) for time in chosen], dtype=torch.float64)
