# SPDX-License-Identifier: Apache-2.0
"""Levels and models that a sampler cannot go with are refused with the reason."""

import pytest
import torch

from graft.samplers import SAMPLERS, Levels, check, evaluations, sample
from tests.samplers.gaussian import denoise, discrete, no_noise

FLOW = Levels("flow", torch.linspace(0.001, 1, 1000, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "SIGMAS has no level"),
        ([1.0], "SIGMAS has one level"),
        ([1.0, 2.0, 0.0], "rises from 1 to 2 at step 1"),
        ([1.0, -0.5], "a level of -0.5"),
        ([float("nan"), 0.0], "a level of nan"),
        ([float("inf"), 0.0], "a level of inf"),
    ],
)
def test_levels_that_are_none_are_refused(sigmas, message):
    sampler = SAMPLERS.get("edm-heun")()
    with pytest.raises(ValueError, match=message):
        sample(sampler, denoise, torch.ones(1, 1), torch.tensor(sigmas), no_noise)
    with pytest.raises(ValueError, match=message):
        evaluations(sampler, torch.tensor(sigmas))


@pytest.mark.parametrize("name", ["edm-heun", "edm-euler"])
def test_churn_is_refused_for_flow_models_by_name(name):
    kind = SAMPLERS.get(name)
    check(kind(), FLOW)
    with pytest.raises(ValueError, match=f"{name} adds noise .s_churn is 40.*Set s_churn to 0"):
        check(kind(s_churn=40.0), FLOW)
    for family in ("eps", "v", "edm", "x0", "other"):
        check(kind(s_churn=40.0), discrete(family))


def test_other_noise_is_refused_for_flow_models_too():
    with pytest.raises(ValueError, match="dpmpp-2m-sde adds noise .eta is 1.*Set eta to 0"):
        check(SAMPLERS.get("dpmpp-2m-sde")(), FLOW)
    check(SAMPLERS.get("dpmpp-2m-sde")(eta=0.0), FLOW)
    check(SAMPLERS.get("ddim")(), FLOW)


@pytest.mark.parametrize("name", ["tcd", "lcm"])
@pytest.mark.parametrize("levels", [None, FLOW, Levels("edm", FLOW.sigmas)])
def test_samplers_by_time_steps_need_a_model_that_has_them(name, levels):
    with pytest.raises(ValueError, match=f"{name} needs an eps or v model with time steps"):
        check(SAMPLERS.get(name)(), levels)
    check(SAMPLERS.get(name)(), discrete())


@pytest.mark.parametrize("name", ["edm-euler", "edm-heun", "dpmpp-2m"])
def test_a_straight_flow_is_followed_exactly(name):
    """With one clean picture y a flow model's x is (1 - t) y + t n and D is y: every solver ends at y."""
    y = torch.tensor([[0.3, -1.2]])
    noise = torch.tensor([[0.7, 0.1]])
    sigmas = torch.tensor([1.0, 0.6, 0.3, 0.0])
    sampler = SAMPLERS.get(name)()
    end = sample(sampler, lambda x, sigma: y, noise, sigmas, no_noise, levels=FLOW)
    torch.testing.assert_close(end, y)
    half = sample(sampler, lambda x, sigma: y, noise, sigmas[:3], no_noise, levels=FLOW)
    torch.testing.assert_close(half, 0.7 * y + 0.3 * noise)
