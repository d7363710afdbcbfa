# SPDX-License-Identifier: Apache-2.0
"""Against diffusers' EDMDPMSolverMultistepScheduler, step by step, with random denoisers."""

import diffusers
import pytest
import torch

from graft.samplers import sample
from graft.samplers.dpmpp_2m import DPMpp2M
from graft.samplers.dpmpp_2m_sde import DPMpp2MSDE
from tests.samplers.gaussian import no_noise


def compare(sampler, steps, noise, generator=None, **config):
    """The largest difference of a step, in units of its level and 1."""
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(steps)
    seeded = torch.Generator().manual_seed(steps)
    outputs = torch.randn(steps, 2, 4, 8, 8, generator=seeded)
    x = 80 * torch.randn(2, 4, 8, 8, generator=seeded)
    theirs, ours, taken = x, [], iter(outputs)

    def d(x, sigma):
        return scheduler.precondition_outputs(x, next(taken), torch.tensor(sigma))

    sample(sampler, d, x, scheduler.sigmas, noise, watch=lambda i, step: ours.append(step.x))
    worst = 0.0
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(outputs[i], t, theirs, generator=generator).prev_sample
        scale = float(scheduler.sigmas[i]) + 1
        worst = max(worst, float((ours[i] - theirs).abs().max()) / scale)
    return worst


@pytest.mark.parametrize("steps", [1, 2, 9, 20])
def test_every_step_is_that_of_diffusers(steps):
    assert compare(DPMpp2M(), steps, no_noise) < 1e-5


@pytest.mark.parametrize("steps", [2, 9, 20])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_every_step_of_the_sde_is_that_of_diffusers(steps, solver):
    drawn, again = (torch.Generator().manual_seed(9) for _ in range(2))
    found = compare(
        DPMpp2MSDE(solver=solver),
        steps,
        lambda like, sigma: torch.randn(like.shape, generator=drawn),
        again,
        algorithm_type="sde-dpmsolver++",
        solver_type=solver,
    )
    assert found < 1e-5


def test_one_step_by_hand():
    """From 4 by 2 to 1 with D = x / 2: D = 4, x = 8 / 2 + 4 / 2 = 6; then D = 3, r = 1, D' = 3 + (3 - 4) / 2 = 2.5 and
    x = 6 / 2 + 2.5 / 2 = 4.25."""
    sigmas = torch.tensor([4.0, 2.0, 1.0])
    end = sample(DPMpp2M(), lambda x, sigma: x / 2, torch.tensor([[8.0]]), sigmas, no_noise)
    assert float(end) == pytest.approx(4.25)
