# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' DDIMScheduler in its own coordinates, step by step, with random denoisers and the same noise."""

import diffusers
import pytest
import torch

from graft.samplers import KeyedNoise, sample
from graft.samplers.ddim import DDIM
from tests.samplers.gaussian import MU, START, C, denoise, karras


def scheduler_of(prediction):
    made = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=prediction,
        timestep_spacing="leading",
    )
    made.alphas_cumprod = (
        made.alphas_cumprod.double()
    )  # its own rounding adds up to 1e-5 in 20 steps
    made.final_alpha_cumprod = made.final_alpha_cumprod.double()
    return made


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [5, 20])
def test_every_step_is_that_of_diffusers(eta, prediction, steps):
    """theirs = ours sqrt alpha_bar; their last step goes to alpha_bar = 1, which is sigma 0."""
    scheduler = scheduler_of(prediction)
    scheduler.set_timesteps(steps)
    a = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1).double()])
    sigmas = ((1 - a) / a).sqrt()
    generator = torch.Generator().manual_seed(steps)
    outputs = torch.randn(steps, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    noises = torch.randn(steps, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    vp = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    ours, taken, drawn = [], iter(outputs), iter(noises)

    def d(x, sigma):
        """eps: x - sigma F; v: x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) F."""
        if prediction == "epsilon":
            return x - sigma * next(taken)
        return x / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * next(taken)

    x = vp / a[0].sqrt()
    watch = lambda i, step: ours.append(step.x * a[i + 1].sqrt())  # noqa: E731
    sample(DDIM(eta=eta), d, x, sigmas, lambda like, sigma: next(drawn), watch=watch)
    for i, t in enumerate(scheduler.timesteps):
        noise = noises[i] if eta else None
        vp = scheduler.step(outputs[i], t, vp, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours[i], vp, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_end_has_the_datas_mean_and_spread(eta):
    """DDIM with eta is of first order: at 320 steps its bias is within 2 % of the data's spread."""
    n = 20_000
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = MU + (C**2 + START**2) ** 0.5 * x
    end = sample(DDIM(eta=eta), denoise, x, karras(320), KeyedNoise(1))
    assert abs(float(end.mean()) - MU) < 4 * C / n**0.5
    assert abs(float(end.std()) - C) < 4 * C / (2 * n) ** 0.5 + 0.02 * C


def test_eta_has_limits():
    with pytest.raises(ValueError, match=r"eta is 1.5; it must be between 0.0 and 1.0"):
        DDIM(eta=1.5)
