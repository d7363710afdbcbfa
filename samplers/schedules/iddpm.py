# SPDX-License-Identifier: Apache-2.0
"""Improved DDPM's cosine levels (Nichol and Dhariwal 2021; Karras et al. 2022, Table 1; arXiv 2206.00364).

u_M = 0, u_(j-1) = sqrt((u_j^2 + 1) / max(a_(j-1) / a_j, c1) - 1), a_j = sin^2(pi / 2 j / (M (c2 + 1))); the levels are
the u of evenly spaced indices, from the first that is not above sigma_max.
"""

import math
from dataclasses import dataclass

import torch

from ...registry import option
from ..parts import SCHEDULES, Levels
from ._range import LIMITS, SIGMA_MAX, SIGMA_MIN, Range, ramp


@SCHEDULES.register("iddpm")
@dataclass(frozen=True)
class IDDPM(Range):
    """u at floor(j_0 + (M - 1 - j_0) / (N - 1) i + 1 / 2), within the range."""

    sigma_min: float = option(0.0001, SIGMA_MIN, **LIMITS)
    sigma_max: float = option(81.0, SIGMA_MAX + " 81 gives Karras' j_0 of 8.", **LIMITS)
    m: int = option(1000, "How many levels the model was trained at.", min=2, max=100_000)
    c1: float = option(0.001, "The smallest ratio of two levels' pictures.", min=1e-9, max=0.5)
    c2: float = option(0.008, "Shift of the cosine, so that the lowest level is not 0.", **LIMITS)

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]`` or fewer."""
        u = self.table()
        inside = ((u <= self.sigma_max) & (u >= self.sigma_min)).nonzero().flatten()
        if not len(inside):
            raise ValueError(
                f"No level of iddpm lies between sigma_min {self.sigma_min:g} and sigma_max {self.sigma_max:g}; they "
                f"go from {float(u[-1]):.4g} to {float(u[0]):.4g}."
            )
        first, last = int(inside[0]), int(inside[-1])
        index = (first + ramp(steps) * (last - first) + 0.5).floor().long()
        return torch.unique_consecutive(u[index])

    def table(self) -> torch.Tensor:
        """u_0 to u_(M-1), falling, float64 ``[M]``."""
        a = [math.sin(math.pi / 2 * j / (self.m * (self.c2 + 1))) ** 2 for j in range(self.m + 1)]
        u = [0.0]
        for j in range(self.m, 0, -1):
            u.append(math.sqrt((u[-1] ** 2 + 1) / max(a[j - 1] / a[j], self.c1) - 1))
        return torch.tensor(u[:0:-1], dtype=torch.float64)
