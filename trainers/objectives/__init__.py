# SPDX-License-Identifier: Apache-2.0
"""The objective: noise law, noise, weight and metric over the residual of a denoiser.

    loss = mean over the batch of  w(sigma) * mean(rho(r)),   r = (D(x; sigma) - y) / c_out(sigma)

With w = 1 this is the usual eps-, v- or flow-MSE, and Karras' lambda(sigma) for EDM models (Karras
et al. 2022, eq. 8 and Table 1; arXiv 2206.00364).
"""

from dataclasses import dataclass, replace

import torch

from ...registry import check_limits, option
from ..data.batch import Batch
from ..denoiser import Denoiser, Preconditioning, c_out, c_skip
from ..random import Draws
from . import levels
from .parts import METRICS, NOISE, NOISINGS, WEIGHTS, Metric, NoiseLaw, Noising, Weight

from . import metrics, noise, noisings, weights  # isort: skip  (they register in the families above)

NOISE.discover(noise.__path__, noise.__name__)
WEIGHTS.discover(weights.__path__, weights.__name__)
METRICS.discover(metrics.__path__, metrics.__name__)
NOISINGS.discover(noisings.__path__, noisings.__name__)
SAMPLES, INSTANCES = "samples", "instances"
_LEAST_MASK = 1e-6


@dataclass(frozen=True, eq=False)
class Noised:
    """Noise levels sigma ``[B]``, noised latents x ``[B, ...]``, and what D(x; sigma) should give."""

    sigma: torch.Tensor
    x: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimized. ``preserve`` weighs the distance from the base model on other prompts."""

    noise: NoiseLaw = option(NOISE.get("model")(), "How noise levels are drawn.")
    weight: Weight = option(WEIGHTS.get("one")(), "How much each noise level counts.")
    metric: Metric = option(METRICS.get("l2")(), "How the error is measured.")
    preserve: float = option(
        1.0,
        "Weight of staying like the base model on prompts without the trigger; 0 is off and faster.",
        min=0.0,
        max=100.0,
    )
    preserve_prompts: tuple[str, ...] = option((), "Prompts whose pictures are to stay.")
    noising: Noising = option(NOISINGS.get("gaussian")(), "What noise is added.")
    sigma_min: float = option(
        0.0, "Lowest noise level to train at; 0 is the model's own.", min=0.0, max=1e6
    )
    sigma_max: float = option(
        0.0, "Highest noise level to train at; 0 is the model's own.", min=0.0, max=1e6
    )
    stratified: bool = option(
        False, "Draw the noise levels of one step from equal parts of the noise law, one each."
    )
    mask_normalize: bool = option(
        True, "Divide a masked loss by the mask's mean, so that a small mask trains as strongly."
    )
    input_perturbation: float = option(
        0.0,
        "Further noise on the network's input alone, as a share of the noise (Ning et al. 2023).",
        min=0.0,
        max=10.0,
    )
    zero_terminal: bool = option(
        False, "Give a v model a last noise level without any picture, in MODEL out, too."
    )
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
    learn_log_variance: bool = option(
        False,
        "Learn the mean loss of each noise level and divide by it, so that every level counts the same.",
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def levels(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """Noise levels ``[B]`` on the CPU for uniform ``u`` ``[B]``, before they snap to a table."""
        return levels.quantile(self.noise, u, denoiser, self.sigma_min, self.sigma_max)

    def noised(self, denoiser: Denoiser, clean: torch.Tensor, draws: Draws) -> Noised:
        """Draw noise levels and noise for clean latents ``[B, ...]``."""
        u = draws.stratified("sigma") if self.stratified else draws.uniform("sigma")
        sigma = denoiser.nearest(self.levels(u, denoiser).to(clean.device))
        noise = self.noising(clean, draws)
        noised = Noised(sigma, denoiser.add_noise(sigma, noise, clean), clean)
        if self.input_perturbation == 0:
            return noised
        return self._perturbed(noised, noise, denoiser, draws)

    def _perturbed(
        self, noised: Noised, noise: torch.Tensor, denoiser: Denoiser, draws: Draws
    ) -> Noised:
        """Input perturbation (Ning et al. 2023, Algorithm 1; arXiv 2301.11706), for any model.

        The network sees x' with the noise n + gamma n', and is asked for what it would be asked for at x: with
        y* = y + c_skip (x' - x), (D(x') - y*) / c_out is F(x') minus the target of F at x.
        """
        clean = noised.target
        further = draws.normal(clean.shape[1:], "perturbation").to(clean.device)
        x = denoiser.add_noise(noised.sigma, noise + self.input_perturbation * further, clean)
        target = clean + c_skip(denoiser, noised.sigma, clean.ndim) * (x - noised.x)
        return replace(noised, x=x, target=target)

    def sample_loss(self, denoiser: Denoiser, noised: Noised, batch: Batch) -> torch.Tensor:
        """Loss of every sample ``[B]`` fp32, without the batch's own weight."""
        x, sigma = noised.x, noised.sigma
        error = denoiser(x, sigma, batch.cond).float() - noised.target
        residual = error / c_out(denoiser, sigma, x.ndim)
        rho = self.metric(residual, sigma, denoiser)
        loss = self._mean(rho, batch.mask)
        return loss if batch.plain else loss * self.weight(sigma, denoiser)

    def _mean(self, rho: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Mean of each sample ``[B]``, over what its mask leaves; 0 where that is nothing."""
        if mask is None:
            return rho.flatten(1).mean(1)
        while mask.ndim < rho.ndim:
            mask = mask.unsqueeze(2)
        means = (rho * mask).flatten(1).mean(1)
        if not self.mask_normalize:
            return means
        return means / mask.flatten(1).mean(1).clamp(min=_LEAST_MASK)


__all__ = [
    "METRICS",
    "NOISE",
    "NOISINGS",
    "WEIGHTS",
    "Metric",
    "NoiseLaw",
    "Noised",
    "Noising",
    "Objective",
    "Weight",
]
