# SPDX-License-Identifier: Apache-2.0
"""The objective: noise law, weight and metric over the residual of a denoiser.

    loss = mean over the batch of  w(sigma) * mean(rho(r)),   r = (D(x; sigma) - y) / c_out(sigma)

With w = 1 this is the usual eps-, v- or flow-MSE, and Karras' lambda(sigma) for EDM models (Karras
et al. 2022, eq. 8 and Table 1; arXiv 2206.00364).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from ...registry import Registry, check_limits, option
from ..data.batch import Batch
from ..denoiser import Denoiser, c_out
from ..random import Draws


class NoiseLaw(Protocol):
    """How sigma is drawn: a quantile function."""

    def quantile(self, u: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """sigma ``[B]`` fp32 for uniform ``u`` ``[B]`` in [0, 1), fp64 on the CPU."""


class Weight(Protocol):
    """The factor of each sample's loss."""

    def __call__(self, sigma: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """w ``[B]`` for sigma ``[B]``."""


class Metric(Protocol):
    """The penalty of the residual."""

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """rho(r), elementwise, same shape."""


SAMPLES, INSTANCES = "samples", "instances"
NOISE: Registry[NoiseLaw] = Registry("noise law")
WEIGHTS: Registry[Weight] = Registry("weight")
METRICS: Registry[Metric] = Registry("metric")

from . import metrics, noise, weights  # noqa: E402  (they register in the families above)

NOISE.discover(noise.__path__, noise.__name__)
WEIGHTS.discover(weights.__path__, weights.__name__)
METRICS.discover(metrics.__path__, metrics.__name__)


@dataclass(frozen=True, eq=False)
class Noised:
    """Noise levels sigma ``[B]``, noised latents x ``[B, ...]``, and what D(x; sigma) should give."""

    sigma: torch.Tensor
    x: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimized. ``preserve`` weighs the distance from the base model on other prompts."""

    noise: NoiseLaw = NOISE.get("model")()
    weight: Weight = WEIGHTS.get("one")()
    metric: Metric = METRICS.get("l2")()
    preserve: float = option(
        1.0,
        "Weight of staying like the base model on prompts without the trigger; 0 is off and faster.",
        min=0.0,
        max=100.0,
    )
    preserve_prompts: tuple[str, ...] = ()
    preserve_on: str = option(
        SAMPLES,
        "What preserve compares on. samples: pictures that the base model draws before the first step. instances: the "
        "dataset's own noised pictures, with the trigger taken out of the caption; nothing is drawn.",
        choices=(SAMPLES, INSTANCES),
    )
    class_word: str = option(
        "",
        "Takes the trigger's place in the captions that preserve_on instances compares with: dog for a sks dog. Empty "
        "takes the trigger out.",
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def noised(self, denoiser: Denoiser, clean: torch.Tensor, draws: Draws) -> Noised:
        """Draw noise levels and noise for clean latents ``[B, ...]``."""
        sigma = self.noise.quantile(draws.uniform("sigma"), denoiser).to(clean.device)
        sigma = denoiser.nearest(sigma)
        noise = draws.normal(clean.shape[1:]).to(clean.device)
        return Noised(sigma, denoiser.add_noise(sigma, noise, clean), clean)

    def sample_loss(self, denoiser: Denoiser, noised: Noised, batch: Batch) -> torch.Tensor:
        """Loss of every sample ``[B]`` fp32, without the batch's own weight."""
        x, sigma = noised.x, noised.sigma
        error = denoiser(x, sigma, batch.cond).float() - noised.target
        residual = error / c_out(denoiser, sigma, x.ndim)
        loss = self.metric(residual).flatten(1).mean(1)
        return loss if batch.plain else loss * self.weight(sigma, denoiser)
