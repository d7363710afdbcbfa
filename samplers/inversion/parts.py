# SPDX-License-Identifier: Apache-2.0
"""What an inversion is, and what makes one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch

from ...registry import Registry
from ..loop import checked
from ..parts import Denoise, Levels, Noise, Sampler, Stepped

Watch = Callable[
    [int, int, Stepped], None
]  # steps done before this one, of how many, what it came to


@dataclass(frozen=True, eq=False)
class Inversion:
    """The way of a sampler to a picture.

    Attributes:
        sampler: What goes it again; the noise of its steps is in ``rests``.
        sigmas: The levels, falling, each once ``[N + 1]``.
        states: The latent at each level, fp32 or fp64 ``[N + 1, B, ...]``; the last is the picture's.
        rests: What each step lacks of the next state, noise and error together ``[N, B, ...]``; None where a step leads
            there by itself.
        denoised: D at each level ``[N, B, ...]``, for samplers that look at the step before; None for others.
        evaluations: How often D was asked for.
        residual: The largest error of a step that was solved backward, its root mean square in units of the
            latent's spread at its level; 0 where none was.
    """

    sampler: Sampler
    sigmas: tuple[float, ...]
    states: torch.Tensor
    rests: torch.Tensor | None
    denoised: torch.Tensor | None
    evaluations: int
    residual: float = 0.0

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.sigmas) - 1

    def first(self, skip: float) -> int:
        """The step to begin with, where a share of them is left out from the noisiest on; the last one stays."""
        return min(int(skip * self.steps + 1e-9), self.steps - 1)


class Method(Protocol):
    """A way to invert.

    Attributes:
        is_drawn: Whether the states are drawn independently of each other, with noise.
    """

    name: ClassVar[str]
    is_drawn: ClassVar[bool]

    def invert(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        sigmas: Sequence[float],
        noise: Noise,
        *,
        levels: Levels | None = None,
        watch: Watch | None = None,
    ) -> Inversion:
        """The inversion of a latent ``[B, ...]`` over levels that fall, each once."""


INVERSIONS: "Registry[Any]" = Registry("inversion")


def course(sigmas: torch.Tensor) -> tuple[float, ...]:
    """The levels of an inversion, each once.

    Args:
        sigmas: SIGMAS ``[N + 1]``.

    Returns:
        They, falling.

    Raises:
        ValueError: They are none to sample at.
    """
    levels = checked(sigmas)
    distinct = (levels[0], *(to for sigma, to in pairwise(levels) if to < sigma))
    if len(distinct) < 2:
        raise ValueError(
            f"All {len(levels)} SIGMAS are {levels[0]:g}, and an inversion goes from one level to another. Connect the "
            "SIGMAS of a schedule."
        )
    return distinct


def check(method: Method, levels: Levels | None, sigmas: Sequence[float]) -> None:
    """Refuse what cannot be inverted so.

    Args:
        method: The method.
        levels: The model's; None where they are not known.
        sigmas: The levels, falling.

    Raises:
        ValueError: States would be drawn for a flow model, or there is no level without noise.
    """
    if not method.is_drawn:
        return
    if levels is not None and levels.family == "flow":
        raise ValueError(
            f"{method.name} draws the noise of each step, and the steps of a flow model have none: it has less picture "
            "where it has more noise, so that noise which is added leads to none of its levels. Take ddim, dpmpp-2m or "
            "edm-heun."
        )
    if sigmas[-1] > 0:
        raise ValueError(
            f"SIGMAS ends at {sigmas[-1]:g}, and {method.name} draws noise onto a clean picture, at level 0. Connect "
            "all SIGMAS of a schedule; which of the steps are gone again is set by skip."
        )


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Latents ``[B, ...]`` on the CPU, in a tensor ``[n, B, ...]`` that autograd may take."""
    with torch.inference_mode(False):
        return torch.stack([part.detach().to("cpu", copy=True) for part in parts])
