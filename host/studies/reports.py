# SPDX-License-Identifier: Apache-2.0
"""Pictures and words on an objective before a training, and on the losses of one after it."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...trainers.facts import facts
from ...trainers.objectives import Objective
from ...trainers.objectives.check import check
from ...trainers.objectives.report import loss_by_level, shares, spread
from ..drawing.charts import Chart, draw_chart
from ..model import sampling


def objective_report(model: Any, objective: Objective) -> tuple[torch.Tensor, str]:
    """The levels that an objective draws on a MODEL, and the weight of each.

    Args:
        model: The MODEL on the wire; it is not loaded.
        objective: The objective.

    Returns:
        IMAGE and text.

    Raises:
        ValueError: The objective does not go with the model.
    """
    with torch.inference_mode(False):
        check(objective, sampling.of_model(model))
        if objective.zero_terminal:
            model = sampling.zero_terminal(model)
        levels = sampling.of_model(model)
        found = spread(objective, levels)
    low, high = float(levels.sigmas[0]), float(levels.sigmas[-1])
    names = f"{_name(objective.noise)}, weight {_name(objective.weight)}"
    picture = draw_chart(
        Chart(
            f"Noise levels: {names}",
            found.edges,
            found.is_log,
            [100 * share for share in found.drawn],
            found.weight,
            "% of draws",
            "w(sigma)",
        )
    )
    five, half, ninety_five = found.quantiles
    a, b, c = shares(found.counted, found.edges, (0.25, 0.5, 0.75))
    text = "\n".join(
        [
            f"{facts(levels)} model, sigma {low:.4g} to {high:.4g}; {names}, "
            f"metric {_name(objective.metric)}, noising {_name(objective.noising)}",
            f"drawn: half below {half:.3g}, 9 of 10 between {five:.3g} and {ninety_five:.3g}",
            f"weight: {min(found.weight):.3g} to {max(found.weight):.3g}",
            f"drawn and weighed: half of what counts lies between {a:.3g} and {c:.3g}, its middle at {b:.3g}",
        ]
    )
    return picture, text


def loss_report(loss_map: Mapping[str, Any], bins: int) -> tuple[torch.Tensor, str]:
    """The losses of a run by noise level.

    Args:
        loss_map: LOSS_MAP of a training node.
        bins: How many ranges of the level there are.

    Returns:
        IMAGE and text.

    Raises:
        ValueError: It is the loss map of another trainer.
    """
    found = loss_by_level(loss_map, bins)
    picture = draw_chart(
        Chart(
            "Loss by noise level",
            found.edges,
            found.is_log,
            found.mean,
            found.late,
            "mean loss (pictures above)",
            "second half of the run",
            [str(count) if count else "" for count in found.count],
            has_one_scale=True,
        )
    )
    lines = [f"{sum(found.count)} pictures in {len(loss_map['sigma'])} steps"]
    for i, count in enumerate(found.count):
        if count:
            where = f"sigma {found.edges[i]:.3g} to {found.edges[i + 1]:.3g}"
            course = f"{_number(found.early[i])} -> {_number(found.late[i])}"
            lines.append(f"{where}: {_number(found.mean[i])} ({course}), {count} pictures")
    return picture, "\n".join(lines)


def _name(part: Any) -> str:
    return str(getattr(part, "name", type(part).__name__))


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
