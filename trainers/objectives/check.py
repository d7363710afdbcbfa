# SPDX-License-Identifier: Apache-2.0
"""Finds what does not go together in an objective and a model, before anything is trained."""

from typing import Any

import torch

from ..denoiser import Preconditioning
from ..facts import FAMILIES, Facts, facts
from . import Objective, levels

_PARTS = {"noise": "noise law", "weight": "weight", "metric": "metric", "noising": "noising"}


def check(objective: Objective, model: Preconditioning, effective_batch: int = 0) -> None:
    """Check an objective against the model that it shall train.

    Args:
        objective: What is to be minimized.
        model: How the model noises and denoises.
        effective_batch: Pictures in one step; 0 when it is not known.

    Raises:
        ValueError: Names both sides, and what to do.
    """
    known = facts(model)
    for field, kind in _PARTS.items():
        _check_part(kind, getattr(objective, field), known)
    if objective.zero_terminal or (known.family == "eps" and known.is_zero_terminal):
        check_zero_terminal(known)
    levels.quantile(
        objective.noise,
        torch.tensor([0.5], dtype=torch.float64),
        model,
        objective.sigma_min,
        objective.sigma_max,
    )
    weight = getattr(objective.weight, "name", "")
    if objective.learn_log_variance and weight != "one":
        raise ValueError(
            f"learn_log_variance divides by what each noise level loses, which takes the weight '{weight}' out again: "
            "set weight to one, or learn_log_variance to false."
        )
    if objective.stratified and effective_batch == 1:
        raise ValueError(
            "stratified=true spreads the noise levels of one step, and a step has one picture: raise batch_size or "
            "accumulate, or set stratified=false."
        )


def check_zero_terminal(known: Facts) -> None:
    """Refuse a zero-terminal table for a model that cannot use it.

    Args:
        known: The model.

    Raises:
        ValueError: The model is none of v- or x0-prediction with a table.
    """
    if known.family in ("v", "x0") and known.is_discrete:
        return
    why = {
        "eps": "at a level without any picture the noise is all that an eps network is asked for, so it learns "
        "nothing of the picture there: set zero_terminal=false and take zsnr off the MODEL (offset noise helps with "
        "dark pictures), or connect a v-prediction model",
        "flow": "its last level is noise alone already: set zero_terminal=false",
    }.get(known.family, "it has no table of levels to change: set zero_terminal=false")
    raise ValueError(f"zero_terminal does not go with {_model(known)}: {why}.")


def _check_part(kind: str, part: Any, known: Facts) -> None:
    families = getattr(part, "families", tuple(FAMILIES))
    lacks_table = getattr(part, "needs_table", False) and not known.is_discrete
    if known.family in families and not lacks_table:
        return
    remedy = getattr(part, "remedy", f"take another {kind}")
    raise ValueError(f"The {kind} '{part.name}' does not go with {_model(known)}: {remedy}.")


def _model(known: Facts) -> str:
    table = "" if known.is_discrete or known.family in ("flow", "edm") else ", without a table"
    return f"this MODEL ({known}{table})"
