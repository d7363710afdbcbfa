# SPDX-License-Identifier: Apache-2.0
"""The weight of the variational bound, from the betas of the schedule of Stable Diffusion."""

import diffusers
import torch

from graft.trainers.objectives.weights.elbo import ELBO
from tests.trainers.toy import Toy


def schedule():
    """Betas, alphas and cumulated alphas in fp64, and a toy with their table."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    alpha = scheduler.alphas.double()
    bar = alpha.cumprod(0)
    toy = Toy("eps")
    toy.sigmas = ((1 - bar) / bar).sqrt().float()
    return 1 - alpha, alpha, bar, toy


def test_eps_weights_are_those_of_latent_diffusion():
    """beta^2 / (2 posterior_variance alpha (1 - alpha_bar)), and the second for the first."""
    beta, alpha, bar, toy = schedule()
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    posterior = beta * (1 - before) / (1 - bar)
    bound = beta**2 / (2 * posterior * alpha * (1 - bar))
    bound[0] = bound[1]
    expected = (1 + 0.5 * bound).float()
    torch.testing.assert_close(ELBO(0.5)(toy.sigmas, toy), expected, rtol=1e-4, atol=0)


def test_an_x0_model_has_the_bounds_weight_and_not_the_slip():
    """(SNR(t-1) - SNR(t)) / 2, where the slip would give 0.5 sqrt(alpha_bar) / (2 - alpha_bar), at most 0.5."""
    _, _, bar, toy = schedule()
    toy.family = "x0"
    snr = bar / (1 - bar)
    expected = 1 + (snr[9] - snr[10]) / 2
    found = ELBO()(toy.sigmas[10:11], toy)
    torch.testing.assert_close(found.double(), expected[None], rtol=1e-3, atol=0)
    assert float(found) > 5
