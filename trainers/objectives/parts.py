# SPDX-License-Identifier: Apache-2.0
"""What the parts of an objective are, and the registries in which they register themselves.

A part may say on its class what it fits, which is checked before a run: ``families`` (of ``trainers.facts``),
``needs_table`` (levels of a discrete model), and ``remedy``, what to do where it does not fit.
"""

from typing import Protocol

import torch

from ...registry import Registry
from ..denoiser import Preconditioning
from ..random import Draws


class NoiseLaw(Protocol):
    """How sigma is drawn: a quantile function, which rises with u."""

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """sigma ``[B]`` fp32 for uniform ``u`` ``[B]`` in [0, 1], fp64 on the CPU."""

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """Probability ``[B]`` fp64 of a level of at most ``sigma`` ``[B]``."""


class Weight(Protocol):
    """The factor of each sample's loss."""

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """w ``[B]`` for sigma ``[B]``."""


class Metric(Protocol):
    """The penalty of the residual."""

    def __call__(
        self, residual: torch.Tensor, sigma: torch.Tensor, denoiser: Preconditioning
    ) -> torch.Tensor:
        """rho(r), elementwise, same shape as the residual ``[B, ...]``."""


class Noising(Protocol):
    """What noise is added."""

    def __call__(self, clean: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Noise for clean latents ``[B, ...]``, same shape and device."""


NOISE: Registry[NoiseLaw] = Registry("noise law")
WEIGHTS: Registry[Weight] = Registry("weight")
METRICS: Registry[Metric] = Registry("metric")
NOISINGS: Registry[Noising] = Registry("noising")
