# SPDX-License-Identifier: Apache-2.0
"""A sampler over its levels, and what is asked of both before."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch

from .parts import Denoise, Levels, Noise, Sampler, Step, Stepped

Watch = Callable[[int, Stepped], None]


def sample(
    sampler: Sampler,
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise,
    *,
    levels: Levels | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Go through all levels.

    Args:
        sampler: What goes.
        denoise: D.
        x: The noised latent at the first level ``[B, ...]``.
        sigmas: The levels, falling ``[N + 1]``.
        noise: What a stochastic sampler draws from.
        levels: Those of the model, where they are known.
        watch: Told the number of each step, from 0, and what it came to.

    Returns:
        The latent at the last level ``[B, ...]``; half precision becomes fp32.

    Raises:
        ValueError: The levels are none to sample at, or the sampler does not go with the model.
    """
    course = checked(sigmas)
    check(sampler, levels)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    before: tuple[float, torch.Tensor] | None = None
    for i, sigma, to in _steps(course):
        draw = _drawer(noise, x, sigma)
        done = sampler.step(denoise, x, Step(len(course) - 1, sigma, to, draw, before, levels))
        x, before = done.x, (sigma, done.denoised)
        if watch is not None:
            watch(i, done)
    return x


def evaluations(sampler: Sampler, sigmas: torch.Tensor) -> int:
    """How often D is asked for (NFE) over the levels ``[N + 1]``."""
    return sum(sampler.calls if to > 0 else 1 for _, _, to in _steps(checked(sigmas)))


def checked(sigmas: torch.Tensor) -> list[float]:
    """The levels as numbers.

    Args:
        sigmas: SIGMAS ``[N + 1]``.

    Returns:
        They, falling.

    Raises:
        ValueError: There are fewer than two, one is below 0 or no number, or one is above the one before it.
    """
    course: list[float] = torch.as_tensor(sigmas).detach().double().cpu().flatten().tolist()
    if len(course) < 2:
        count = "no level" if not course else "one level"
        raise ValueError(
            f"SIGMAS has {count}, and a step needs two: where it begins and where it ends. Connect the SIGMAS of a "
            "schedule, or split them at another step."
        )
    if not all(math.isfinite(sigma) and sigma >= 0 for sigma in course):
        wrong = next(sigma for sigma in course if not (math.isfinite(sigma) and sigma >= 0))
        raise ValueError(f"SIGMAS has a level of {wrong}; levels are numbers from 0 up.")
    for i, (sigma, to) in enumerate(pairwise(course)):
        if to > sigma:
            raise ValueError(
                f"SIGMAS rises from {sigma:g} to {to:g} at step {i + 1}; a sampler goes down. Take the levels as "
                "the schedule made them, without Flip Sigmas."
            )
    return course


def check(sampler: Sampler, levels: Levels | None) -> None:
    """Refuse a sampler that does not go with a model.

    Args:
        sampler: The sampler.
        levels: The model's; None where they are not known.

    Raises:
        ValueError: It needs time steps that the model has not, or would add noise to a flow model.
    """
    if sampler.needs_times and (levels is None or levels.times is None):
        kind = "this model" if levels is None else _kind(levels)
        raise ValueError(
            f"{sampler.name} needs an eps or v model with time steps, and {kind} has none. Take edm-heun, dpmpp-2m or "
            "ddim."
        )
    if levels is not None and levels.family == "flow" and sampler.is_stochastic:
        option = sampler.noise_option
        raise ValueError(
            f"{sampler.name} adds noise ({option} is {getattr(sampler, option):g}), and a flow model has less picture "
            f"where it has more noise: noise that is added leads to none of its levels. Set {option} to 0."
        )


def _kind(levels: Levels) -> str:
    names: dict[str, Any] = {"edm": "an EDM model", "flow": "a flow model"}
    return str(names.get(levels.family, "a model of continuous levels"))


def _steps(course: list[float]) -> Iterator[tuple[int, float, float]]:
    # Between equal levels nothing happens.
    for i, (sigma, to) in enumerate(pairwise(course)):
        if to < sigma:
            yield i, sigma, to


def _drawer(noise: Noise, x: torch.Tensor, sigma: float) -> Callable[[], torch.Tensor]:
    return lambda: noise(x, sigma)
