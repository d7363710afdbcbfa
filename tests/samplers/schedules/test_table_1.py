# SPDX-License-Identifier: Apache-2.0
"""Each schedule against diffusers, a closed form, or a number of the paper (Karras et al. 2022, Table 1)."""

import math

import diffusers
import pytest
import torch

from graft.samplers import SCHEDULES, course
from graft.samplers.schedules.design_space import DesignSpace
from graft.samplers.schedules.discrete import Discrete
from graft.samplers.schedules.distilled import Distilled
from graft.samplers.schedules.exponential import Exponential
from graft.samplers.schedules.iddpm import IDDPM
from graft.samplers.schedules.karras import Karras
from graft.samplers.schedules.ve import VE
from graft.samplers.schedules.vp import VP
from tests.samplers.gaussian import discrete


@pytest.mark.parametrize("steps", [2, 18, 50])
@pytest.mark.parametrize(("kind", "name"), [(Karras, "karras"), (Exponential, "exponential")])
def test_karras_and_exponential_are_those_of_diffusers(kind, name, steps):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=name)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(course(kind(), steps), scheduler.sigmas.float(), rtol=2e-6, atol=0)


def test_vp_is_the_closed_form():
    """sqrt(e^(19.9 / 2 + 0.1) - 1) = 152.17 at t = 1; at t = 0.001 the exponent is 0.0000099500 + 0.0001."""
    found = VP().levels(3, None)
    middle = math.sqrt(math.expm1(19.9 * 0.5005**2 / 2 + 0.05005))
    expected = [152.167, middle, math.sqrt(math.expm1(0.00010995))]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=0)


def test_ve_is_geometric():
    """From 100 to 0.02 in 4 steps each is the one before times (1 / 5000)^(1 / 3) = 0.058480."""
    found = VE().levels(4, None)
    expected = torch.tensor([100.0, 5.8480355, 0.34199519, 0.02]).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_iddpm_is_the_cosine_table_of_diffusers():
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    betas = scheduler.betas.double()
    alphas = (1 - betas).cumprod(0)
    table = ((1 - alphas) / alphas).sqrt().flip(0)
    torch.testing.assert_close(IDDPM().table()[1:], table[1:], rtol=2e-4, atol=0)


def test_iddpm_begins_at_the_papers_j_0():
    """Table 1 with j_0 = 8, N = 18: the indices floor(8 + 991 / 17 i + 1 / 2)."""
    schedule = IDDPM()
    u = schedule.table()
    index = [math.floor(8 + 991 / 17 * i + 0.5) for i in range(18)]
    assert torch.equal(schedule.levels(18, None), u[index])
    assert float(u[8]) == pytest.approx(80.2037, abs=1e-4)
    with pytest.raises(ValueError, match="No level of iddpm lies between"):
        IDDPM(sigma_min=700.0, sigma_max=800.0).levels(5, None)


def test_the_design_spaces_corners_are_the_other_schedules():
    low, high = 0.02, 100.0
    for made, name in (
        (DesignSpace(low, high, "edm", 7.0), "karras"),
        (DesignSpace(low, high, "edm", 0.0), "exponential"),
        (DesignSpace(low, high, "vp", 1.0), "vp"),
        (DesignSpace(low, high, "ve", 0.0), "ve"),
    ):
        other = SCHEDULES.get(name)(sigma_min=low, sigma_max=high)
        torch.testing.assert_close(
            made.levels(11, None), other.levels(11, None), rtol=1e-10, atol=0
        )


def test_the_ve_time_with_a_power():
    """rho 2 in t = sigma^2 is even in sigma: 9, 5, 1."""
    found = DesignSpace(1.0, 9.0, "ve", 2.0).levels(3, None)
    torch.testing.assert_close(found, torch.tensor([9.0, 5.0, 1.0]).double())


def test_discrete_has_levels_of_the_table_only_and_each_once():
    levels = discrete()
    found = Discrete().levels(100, levels)
    assert set(found.tolist()) <= set(levels.sigmas.tolist())
    assert (float(found[0]), float(found[-1])) == (levels.sigmas[-1], levels.sigmas[0])
    assert bool((found.diff() < 0).all()) and len(found) < 100
    free = Discrete(snap=False).levels(100, levels)
    expected = Karras(float(levels.sigmas[0]), float(levels.sigmas[-1])).levels(100, None)
    torch.testing.assert_close(free, expected)
    nearest = [levels.sigmas[(levels.sigmas.log() - s.log()).abs().argmin()] for s in free]
    assert torch.equal(torch.stack(nearest).unique(), found.flip(0))


@pytest.mark.parametrize("steps", [1, 3, 4, 8, 50])
def test_distilled_has_the_times_of_diffusers(steps):
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(steps)
    levels = discrete()
    found = Distilled().levels(steps, levels)
    assert [levels.time(float(s)) for s in found] == scheduler.timesteps.tolist()


def test_more_steps_than_the_distillation_had_are_refused():
    with pytest.raises(ValueError, match="steps is 51, and the model was distilled with 50"):
        Distilled().levels(51, discrete())
