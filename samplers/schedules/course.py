# SPDX-License-Identifier: Apache-2.0
"""A schedule's levels as SIGMAS, with what is asked of them before."""

import torch

from ..parts import Levels, Schedule


def course(schedule: Schedule, steps: int, model: Levels | None = None) -> torch.Tensor:
    """The levels of a schedule and 0 after them.

    Args:
        schedule: The schedule.
        steps: How many steps there are to be.
        model: The model's levels, where they are known.

    Returns:
        Falling levels, the last 0, fp32 on the CPU ``[n + 1]``; n is below ``steps`` where a table has no more levels.

    Raises:
        ValueError: It needs a model, or the model has no such levels.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    if schedule.needs_model and model is None:
        raise ValueError(
            f"The schedule {schedule.name} is made of a model's own levels: connect the MODEL."
        )
    levels = schedule.levels(steps, model)
    if not bool(torch.isfinite(levels.float()).all()):
        raise ValueError(
            f"With these settings {schedule.name} has levels that are beyond all numbers."
        )
    if model is not None and model.family == "flow" and float(levels.max()) > 1 + 1e-6:
        raise ValueError(
            f"sigma_max is {float(levels.max()):g}; the levels of a flow model are times from 0 to 1. Set it to 1 or "
            "less, or to 0 for the model's own."
        )
    made = torch.cat([levels, levels.new_zeros(1)]).to("cpu", torch.float32)
    return torch.unique_consecutive(made)
