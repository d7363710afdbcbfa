# SPDX-License-Identifier: Apache-2.0
"""An objective from the names of its parts and one string of options for all of them."""

from typing import Any

from ...registry import Parts, parse_parts
from . import METRICS, NOISE, NOISINGS, WEIGHTS, Objective


def objective(
    noise: str, weight: str, metric: str, noising: str, options: str, **own: Any
) -> Objective:
    """Build an objective.

    Args:
        noise: Name of the noise law.
        weight: Of the weight.
        metric: Of the metric.
        noising: Of the kind of noise.
        options: ``name=value`` pairs, each for the part that has it or for the objective itself.
        **own: Values for the objective's own fields, behind which those of ``options`` stand.

    Returns:
        The objective.

    Raises:
        ValueError: No such part or option, or a value beyond its limits.
    """
    parts: Parts = {
        "noise": (NOISE, noise),
        "weight": (WEIGHTS, weight),
        "metric": (METRICS, metric),
        "noising": (NOISINGS, noising),
    }
    built = parse_parts(parts, options, Objective)
    settings = built.pop("settings")
    return Objective(**(built | own | settings))
