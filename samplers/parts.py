# SPDX-License-Identifier: Apache-2.0
"""What a sampler and a schedule are, what they know of a model, and their families.

A sampler is written as one step over D(x; sigma), in coordinates where x = y + sigma n (or the model's own, where
dx/dsigma = (x - D) / sigma as well, as flow models have it).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from ..registry import Registry

SAMPLERS: "Registry[Any]" = Registry("sampler")
SCHEDULES: "Registry[Any]" = Registry("schedule")


class Denoise(Protocol):
    """The model with its guidance, as one function."""

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """D(x; sigma), ``[B, ...]`` like ``x``."""


class Noise(Protocol):
    """Where a sampler's noise comes from."""

    def __call__(self, like: torch.Tensor, sigma: float) -> torch.Tensor:
        """Standard normal noise like ``like`` ``[B, ...]``, for the step that begins at ``sigma``."""


@dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of a model.

    Attributes:
        family: eps, v, edm, flow, x0 or other.
        sigmas: Its table in ascending order, float64 on the CPU ``[N]``.
        times: The time step of each level of the table, ascending ``[N]``; None where any level exists.
    """

    family: str
    sigmas: torch.Tensor
    times: torch.Tensor | None = None

    def nearest(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Levels ``[n]`` snapped to the table as a discrete model does; as they are for any other."""
        if self.times is None:
            return sigmas
        return self.sigmas[self._index(sigmas)]

    def time(self, sigma: float) -> float:
        """The time step at a level, that of the nearest in the table."""
        return float(self._times()[self._index(torch.tensor([sigma], dtype=torch.float64))])

    def sigma(self, time: float) -> float:
        """The level at a time, by ln sigma between those of the table."""
        times = self._times().double()
        high = int(torch.searchsorted(times, time).clamp(1, len(times) - 1))
        low_time, high_time = float(times[high - 1]), float(times[high])
        share = min(max((time - low_time) / (high_time - low_time), 0.0), 1.0)
        low, top = self.sigmas[high - 1].log(), self.sigmas[high].log()
        return float((low + share * (top - low)).exp())

    def _index(self, sigmas: torch.Tensor) -> torch.Tensor:
        distance = sigmas.double().log()[:, None] - self.sigmas.log()
        return distance.abs().argmin(dim=1)

    def _times(self) -> torch.Tensor:
        if self.times is None:
            raise ValueError("This model has noise levels and no time steps.")
        return self.times


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a sampler.

    Attributes:
        steps: How many steps there are, the N of s_churn / N.
        sigma: The level that x is at.
        to: The level to go to, below it; 0 at the end.
        noise: Draws the step's noise; it may be called once.
        before: Level and D of the step before; None at the first.
        levels: The model's, where they are known.
    """

    steps: int
    sigma: float
    to: float
    noise: Callable[[], torch.Tensor]
    before: tuple[float, torch.Tensor] | None = None
    levels: Levels | None = None


@dataclass(frozen=True, eq=False)
class Stepped:
    """What a step came to.

    Attributes:
        x: The latent at the level it went to ``[B, ...]``.
        denoised: D at the step's beginning ``[B, ...]``.
        asked: What D was asked about there: the latent, with the noise that was added to it ``[B, ...]``.
        sigma: The level D was asked at.
    """

    x: torch.Tensor
    denoised: torch.Tensor
    asked: torch.Tensor
    sigma: float


class Sampler(Protocol):
    """A way from noise to a picture.

    Attributes:
        order: Of its error over the step width on the probability flow ODE, with its noise off; 0 solves no ODE.
        calls: How often a step asks for D; a step to 0 asks once.
        noise_option: The option that is 0 where it adds no noise; empty where there is none.
        needs_times: Whether it needs a model with time steps.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    calls: ClassVar[int]
    noise_option: ClassVar[str]
    needs_times: ClassVar[bool]

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise as it is set."""

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""


class Schedule(Protocol):
    """A course of noise levels."""

    name: ClassVar[str]
    needs_model: ClassVar[bool]

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step, falling and above 0, float64 ``[steps]``.

        Levels that a table has made equal count once: there may be fewer than ``steps``.
        """
