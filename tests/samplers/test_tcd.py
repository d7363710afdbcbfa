# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' TCDScheduler in its own coordinates, step by step, with random denoisers and the same noise."""

import diffusers
import pytest
import torch

from graft.samplers import Levels, sample
from graft.samplers.ddim import DDIM
from graft.samplers.schedules.distilled import Distilled
from graft.samplers.tcd import TCD
from tests.samplers.gaussian import discrete, karras, network, no_noise


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 8])
def test_every_step_is_that_of_diffusers(gamma, prediction, steps):
    """theirs = ours sqrt alpha_bar; their last step goes to the time 0, which is the lowest level of the table."""
    scheduler = diffusers.TCDScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()
    table = ((1 - alphas) / alphas).sqrt()
    levels = Levels("eps", table, torch.arange(1000))
    sigmas = torch.cat([table[scheduler.timesteps], table[:1]])
    a = 1 / (1 + sigmas**2)
    generator = torch.Generator().manual_seed(steps)
    outputs = torch.randn(steps, 2, 4, 8, 8, generator=generator)
    vp = torch.randn(2, 4, 8, 8, generator=generator)
    drawn, again = (torch.Generator().manual_seed(9) for _ in range(2))
    ours, taken = [], iter(outputs)

    def d(x, sigma):
        if prediction == "epsilon":
            return x - sigma * next(taken)
        return x / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * next(taken)

    sample(
        TCD(gamma=gamma),
        d,
        vp / a[0].sqrt().float(),
        sigmas,
        lambda like, sigma: torch.randn(like.shape, generator=drawn),
        levels=levels,
        watch=lambda i, step: ours.append(step.x * a[i + 1].sqrt().float()),
    )
    for i, t in enumerate(scheduler.timesteps):
        vp = scheduler.step(outputs[i], t, vp, eta=gamma, generator=again, return_dict=False)[0]
        torch.testing.assert_close(ours[i], vp, rtol=0, atol=5e-5)


def test_without_gamma_it_is_ddim():
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ends = [
        sample(sampler, network(), x, karras(6), no_noise, levels=discrete())
        for sampler in (TCD(gamma=0.0), DDIM())
    ]
    assert torch.equal(*ends)


def test_the_times_of_four_steps():
    """diffusers' TCDScheduler().set_timesteps(4): 999, 759, 499, 259."""
    levels = discrete()
    found = Distilled().levels(4, levels)
    assert [levels.time(float(sigma)) for sigma in found] == [999, 759, 499, 259]
