# SPDX-License-Identifier: Apache-2.0
"""Where an objective draws its noise levels and what they count, and the losses of a run by level, as numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..denoiser import Preconditioning
from . import Objective
from .levels import limits

DRAWN = 20_000
_LOG_FROM = 50.0  # highest over lowest level from which bins are equal in ln sigma


@dataclass(frozen=True)
class Spread:
    """What an objective makes of a model's levels, in bins.

    Attributes:
        edges: Edges of the bins, one more than there are bins.
        is_log: Whether the bins are equal in ln sigma instead of sigma.
        drawn: Share of the draws that falls into each bin.
        weight: The weight in the middle of each bin.
        counted: Share of the loss's weight that each bin has: drawn times weight.
        quantiles: The levels below which 5, 50 and 95 of 100 draws lie.
    """

    edges: tuple[float, ...]
    is_log: bool
    drawn: tuple[float, ...]
    weight: tuple[float, ...]
    counted: tuple[float, ...]
    quantiles: tuple[float, float, float]


@dataclass(frozen=True)
class LossByLevel:
    """The losses of a run in bins of the noise level; a bin without a picture has nan.

    Attributes:
        edges: Edges of the bins, one more than there are bins.
        is_log: Whether the bins are equal in ln sigma instead of sigma.
        count: Pictures trained on in each bin.
        mean: Mean loss of each bin.
        early: Mean loss in the first half of the steps.
        late: Mean loss in the second half of the steps.
    """

    edges: tuple[float, ...]
    is_log: bool
    count: tuple[int, ...]
    mean: tuple[float, ...]
    early: tuple[float, ...]
    late: tuple[float, ...]


def spread(objective: Objective, model: Preconditioning, bins: int = 40) -> Spread:
    """Where an objective draws levels of a model, from evenly spread quantiles and so without chance.

    Args:
        objective: The objective.
        model: Whose levels are drawn.
        bins: How many bins the model's own levels are cut into.

    Returns:
        Shares and weights by bin.
    """
    u = (torch.arange(DRAWN, dtype=torch.float64) + 0.5) / DRAWN
    sigma = model.nearest(objective.levels(u, model))
    edges, is_log = _edges(*limits(model), bins)
    at = _bin(sigma, edges)
    drawn = torch.bincount(at, minlength=bins).double() / DRAWN
    each = objective.weight(sigma, model).double()
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, each)
    middle = (edges[1:] * edges[:-1]).sqrt() if is_log else (edges[1:] + edges[:-1]) / 2
    weight = objective.weight(model.nearest(middle.float()), model)
    five, half, ninety_five = (float(sigma[int(DRAWN * q)]) for q in (0.05, 0.5, 0.95))
    return Spread(
        tuple(edges.tolist()),
        is_log,
        tuple(drawn.tolist()),
        tuple(weight.tolist()),
        tuple((total / total.sum().clamp(min=1e-300)).tolist()),
        (five, half, ninety_five),
    )


def loss_by_level(loss_map: Mapping[str, Any], bins: int = 20) -> LossByLevel:
    """The losses of a run by noise level.

    Args:
        loss_map: With ``sigma`` and ``sample_loss``, a list of numbers for every step each.
        bins: How many bins the levels that were drawn are cut into.

    Returns:
        Counts and means by bin.

    Raises:
        ValueError: The loss map is of another trainer, or empty.
    """
    rows = zip(loss_map.get("sigma", ()), loss_map.get("sample_loss", ()), strict=True)
    pairs = [(step, s, x) for step, (a, b) in enumerate(rows) for s, x in zip(a, b, strict=True)]
    pairs = [pair for pair in pairs if math.isfinite(pair[2])]
    if not pairs:
        raise ValueError(
            "This LOSS_MAP has no noise levels in it: connect the LOSS_MAP of one of Graft's training nodes."
        )
    step, sigma, loss = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)
    )
    edges, is_log = _edges(float(sigma.min()), float(sigma.max()), bins)
    at, is_late = _bin(sigma, edges), step >= len(loss_map["sigma"]) / 2
    return LossByLevel(
        tuple(edges.tolist()),
        is_log,
        tuple(torch.bincount(at, minlength=bins).tolist()),
        _means(at, loss, bins),
        _means(at[~is_late], loss[~is_late], bins),
        _means(at[is_late], loss[is_late], bins),
    )


def _edges(low: float, high: float, bins: int) -> tuple[torch.Tensor, bool]:
    if high <= low:
        low, high = low * 0.9, high * 1.1
    is_log = low > 0 and high > 1.0 and high / low >= _LOG_FROM
    ends = (math.log(low), math.log(high)) if is_log else (low, high)
    edges = torch.linspace(*ends, bins + 1, dtype=torch.float64)
    return (edges.exp() if is_log else edges), is_log


def _bin(sigma: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(sigma.double(), edges[1:-1], right=True)


def _means(at: torch.Tensor, loss: torch.Tensor, bins: int) -> tuple[float, ...]:
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, at, loss)
    return tuple((total / torch.bincount(at, minlength=bins)).tolist())


def shares(values: Sequence[float], edges: Sequence[float], parts: Sequence[float]) -> list[float]:
    """The edges below which each share of ``parts`` of the sum of ``values`` lies.

    Args:
        values: One a bin, not negative.
        edges: Of the bins.
        parts: Shares in 0..1.

    Returns:
        The upper edge of a bin for each of ``parts``.
    """
    sums = torch.tensor(list(values), dtype=torch.float64).cumsum(0)
    wanted = torch.tensor(list(parts), dtype=torch.float64) * sums[-1]
    at = torch.searchsorted(sums, wanted).clamp(max=len(sums) - 1)
    return [float(edges[i + 1]) for i in at.tolist()]
