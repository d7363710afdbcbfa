# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' LCMScheduler in its own coordinates, and on the gaussian with the exact consistency function."""

import diffusers
import pytest
import torch

from graft.samplers import KeyedNoise, Levels, sample
from graft.samplers.lcm import LCM
from tests.samplers.gaussian import MU, START, C, discrete, karras


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_every_step_is_that_of_diffusers(prediction, steps):
    scheduler = diffusers.LCMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()
    table = ((1 - alphas) / alphas).sqrt()
    sigmas = torch.cat([table[scheduler.timesteps], table.new_zeros(1)])
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
        LCM(),
        d,
        vp / a[0].sqrt().float(),
        sigmas,
        lambda like, sigma: torch.randn(like.shape, generator=drawn),
        levels=Levels("eps", table, torch.arange(1000)),
        watch=lambda i, step: ours.append(step.x * a[i + 1].sqrt().float()),
    )
    for i, t in enumerate(scheduler.timesteps):
        vp = scheduler.step(outputs[i], t, vp, generator=again, return_dict=False)[0]
        torch.testing.assert_close(ours[i], vp, rtol=0, atol=5e-5)


def test_the_boundary_at_the_lowest_times():
    """At the time 0 c_skip is 1 and c_out 0: the latent over sqrt(1 + sigma^2). At 1 c_skip is 0.25 / 100.25 and c_out
    10 / sqrt(100.25) = 0.998752."""
    levels = discrete()
    one = torch.ones(1, 1, dtype=torch.float64)

    def end(index):
        sigma = float(levels.sigmas[index])
        sigmas = torch.tensor([sigma, 0.0], dtype=torch.float64)
        found = sample(LCM(), lambda x, s: 3 * one, one, sigmas, KeyedNoise(0), levels=levels)
        return float(found), 1 / (1 + sigma**2) ** 0.5

    found, vp = end(0)
    assert found == pytest.approx(vp)
    found, vp = end(1)
    assert found == pytest.approx(3 * 0.998752339 + vp * 0.25 / 100.25)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_with_the_exact_consistency_function_any_number_of_steps_is_right(steps):
    """The solution at 0 of the gaussian's ODE, in place of D: no error depends on the width of a step (order 0)."""
    n = 20_000

    def consistency(x, sigma):
        return MU + (x - MU) * C / (C**2 + sigma**2) ** 0.5

    x = torch.randn(1, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = MU + (C**2 + START**2) ** 0.5 * x
    sampler = LCM(boundary=False)
    end = sample(sampler, consistency, x, karras(steps), KeyedNoise(4), levels=discrete())
    assert abs(float(end.mean()) - MU) < 4 * C / n**0.5
    assert abs(float(end.std()) - C) < 4 * C / (2 * n) ** 0.5
