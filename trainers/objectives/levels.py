# SPDX-License-Identifier: Apache-2.0
"""Noise levels of a law, within the levels that the model has and the objective allows.

A law is a quantile function, so that a part of its range is a part of the unit interval.
"""

import torch

from ..denoiser import Preconditioning
from ..facts import facts
from .parts import NoiseLaw

_CELLS, _ROUNDS = 1024, 5  # 1024^5 = 2^50 cells of the unit interval
_LEAST = 1e-12


def limits(model: Preconditioning, low: float = 0.0, high: float = 0.0) -> tuple[float, float]:
    """The lowest and highest sigma to train at.

    Args:
        model: Whose levels count.
        low: Lowest sigma; 0 is the model's own.
        high: Highest sigma; 0 is the model's own.

    Returns:
        Two levels; those of a discrete model are in its table, so that no level beyond a limit is the nearest.

    Raises:
        ValueError: The model has no level between the limits.
    """
    table = model.sigmas.cpu()
    first, last = float(table[0]), float(table[-1])
    if high and low > high:
        raise ValueError(
            f"sigma_min is {low} and sigma_max is {high}: sigma_min must be the lower."
        )
    lowest, highest = max(first, low), min(last, high or last)
    if facts(model).is_discrete and (low or high):
        inside = table[(table >= lowest) & (table <= highest)]
        lowest, highest = (float(inside[0]), float(inside[-1])) if len(inside) else (1.0, 0.0)
    if lowest > highest:
        raise ValueError(
            f"The model has no noise level between sigma_min {low:g} and sigma_max {high:g}; its levels run from "
            f"{first:.4g} to {last:.4g}."
        )
    return lowest, highest


def quantile(
    law: NoiseLaw, u: torch.Tensor, model: Preconditioning, low: float = 0.0, high: float = 0.0
) -> torch.Tensor:
    """sigma of a law that is cut off at the limits.

    Args:
        law: The noise law.
        u: Uniform draws ``[B]`` in [0, 1), fp64 on the CPU.
        model: Whose levels count.
        low: Lowest sigma; 0 is the model's own.
        high: Highest sigma; 0 is the model's own.

    Returns:
        sigma ``[B]`` fp32 on the CPU, not yet snapped to a table.

    Raises:
        ValueError: The law has nothing between the limits.
    """
    lowest, highest = limits(model, low, high)
    start, end = part(law, model, lowest, highest)
    if end - start < _LEAST:
        raise ValueError(
            f"The noise law '{getattr(law, 'name', law)}' draws nothing between sigma {lowest:.4g} and {highest:.4g}: "
            "widen sigma_min and sigma_max, or change the law's own settings."
        )
    if (start, end) != (0.0, 1.0):
        u = start + u * (end - start)
    return law.quantile(u, model).clamp(lowest, highest)


def part(law: NoiseLaw, model: Preconditioning, low: float, high: float) -> tuple[float, float]:
    """The part of the unit interval on which a law's quantile function lies within ``low`` and ``high``."""
    ends = law.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64), model)
    start = 0.0 if float(ends[0]) >= low else _edge(law, model, low, is_low=True)
    end = 1.0 if float(ends[1]) <= high else _edge(law, model, high, is_low=False)
    return start, end


def _edge(law: NoiseLaw, model: Preconditioning, level: float, *, is_low: bool) -> float:
    """The smallest u whose sigma is at least ``level``, or the largest whose sigma is at most that."""
    a, b = 0.0, 1.0
    for _ in range(_ROUNDS):
        u = torch.linspace(a, b, _CELLS + 1, dtype=torch.float64)
        sigma = law.quantile(u, model)
        below = int(((sigma < level) if is_low else (sigma <= level)).sum())
        if below in (0, len(u)):
            return a if below == 0 else b
        a, b = float(u[below - 1]), float(u[below])
    return b if is_low else a
