# SPDX-License-Identifier: Apache-2.0
"""A schedule as SIGMAS, for a MODEL where one is there."""

from typing import Any

import torch

from ...registry import options_of
from ...samplers import SCHEDULES, Levels, course
from . import levels
from .plots import describe_sigmas

ENDS = ("sigma_min", "sigma_max")
_BEYOND = 1.001  # a level this far outside of a model's is told of


def sigmas(
    name: str, steps: int, options: str, model: Any = None, **widgets: float
) -> tuple[torch.Tensor, str]:
    """Make SIGMAS.

    Args:
        name: Of the schedule.
        steps: How many steps there are to be.
        options: Values of its fields, ``name=value``.
        model: The MODEL; it is not loaded.
        widgets: Values of its fields; one of 0 is the MODEL's where it is an end and a MODEL is there, else its own.

    Returns:
        SIGMAS ``[n + 1]`` on the CPU, and words.

    Raises:
        ValueError: No such schedule or option, or the levels are none to sample at.
    """
    known = None if model is None else levels.of_model(model)
    chosen = {key: value for key, value in widgets.items() if value or key not in ENDS}
    if known is not None and not SCHEDULES.get(name).needs_model:
        ends = dict(zip(ENDS, (float(known.sigmas[0]), float(known.sigmas[-1])), strict=True))
        chosen = {**ends, **chosen}
    schedule = SCHEDULES.parse(name, options, **chosen)
    with torch.inference_mode(False):
        made = course(schedule, steps, known)
    said = [f"{name}: {describe_sigmas(made.tolist())}"]
    if len(made) - 1 < steps:
        said.append(f"{steps} steps were asked for: levels that fell together count once.")
    unused = [key for key in ENDS if widgets.get(key) and key not in options_of(type(schedule))]
    said += [f"{name} has no {key}: {widgets[key]:g} is not used." for key in unused]
    return made, "\n".join([*said, *_outside(made, known)])


def _outside(made: torch.Tensor, known: Levels | None) -> list[str]:
    if known is None:
        return []
    said = []
    first, last = float(made[0]), float(made[-2])
    low, high = float(known.sigmas[0]), float(known.sigmas[-1])
    if first > high * _BEYOND:
        said.append(
            f"sigma_max {first:.4g} is above the model's {high:.4g}: it has not learned it."
        )
    if last < low / _BEYOND and known.times is not None:
        said.append(f"sigma_min {last:.4g} is below the model's {low:.4g}: it has not learned it.")
    return said
