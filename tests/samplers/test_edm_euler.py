# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' EDMEulerScheduler, step by step, with random denoisers and the same noise."""

import diffusers
import pytest
import torch

from graft.samplers import sample
from graft.samplers.edm_euler import EDMEuler

CHURN = {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 20.0, "s_noise": 1.01}


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("settings", [{}, CHURN])
def test_every_step_is_that_of_diffusers(steps, settings):
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(steps)
    outputs = torch.randn(steps, 2, 4, 8, 8, generator=generator)
    x = 80 * torch.randn(2, 4, 8, 8, generator=generator)
    theirs, ours, taken = x, [], iter(outputs)

    def d(x, sigma):
        return scheduler.precondition_outputs(x, next(taken), torch.tensor(sigma))

    drawn = torch.Generator().manual_seed(9)
    sample(
        EDMEuler(**settings),
        d,
        x,
        scheduler.sigmas,
        lambda like, sigma: torch.randn(like.shape, generator=drawn),
        watch=lambda i, step: ours.append(step.x),
    )
    again = torch.Generator().manual_seed(9)
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(theirs, t)
        done = scheduler.step(outputs[i], t, theirs, generator=again, **settings)
        theirs = done.prev_sample
        scale = float(scheduler.sigmas[i]) + 1
        assert float((ours[i] - theirs).abs().max()) / scale < 1e-5
