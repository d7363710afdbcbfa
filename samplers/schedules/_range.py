# SPDX-License-Identifier: Apache-2.0
"""A lowest and a highest level, and steps between."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...registry import check_limits, option

SIGMA_MIN = "Lowest noise level before 0."
SIGMA_MAX = "Highest noise level, where sampling begins."
_LEAST = 1e-6
LIMITS: dict[str, Any] = {"min": 0.0, "max": 1e6}


@dataclass(frozen=True)
class Range:
    """Levels from sigma_max down to sigma_min."""

    needs_model: ClassVar[bool] = False

    sigma_min: float = option(0.002, SIGMA_MIN, **LIMITS)
    sigma_max: float = option(80.0, SIGMA_MAX, **LIMITS)

    def __post_init__(self) -> None:
        check_limits(self)
        check_ends(self)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}: sigma_min must be below it."
            )


def check_ends(schedule: Any, *, may_be_zero: bool = False) -> None:
    """Refuse ends that are no levels; 0 may stand for another one."""
    for name in ("sigma_min", "sigma_max"):
        value = getattr(schedule, name)
        if value < _LEAST and not (may_be_zero and value == 0):
            allowed = f"at least {_LEAST:g}" + (", or 0" if may_be_zero else "")
            raise ValueError(f"{name} is {value:g}; it must be {allowed}.")


def ramp(steps: int) -> torch.Tensor:
    """From 0 to 1, float64 ``[steps]``; 0 alone where there is one step."""
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def powers(high: float, low: float, rho: float, steps: int) -> torch.Tensor:
    """From ``high`` to ``low``, even in the power 1 / rho (rho 0: in the logarithm), float64 ``[steps]``."""
    share = ramp(steps)
    ends = torch.tensor([high, low], dtype=torch.float64)
    if rho == 0:
        a, b = ends.log()
        return (a + share * (b - a)).exp()
    a, b = ends.pow(1 / rho)
    return (a + share * (b - a)).pow(rho)
