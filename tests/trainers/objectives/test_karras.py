# SPDX-License-Identifier: Apache-2.0
"""The ramp of EDM's levels against diffusers' scheduler, which trains on it."""

import diffusers
import pytest
import torch

from graft.trainers.objectives.noise.karras import Karras
from tests.trainers.toy import Toy


def edm():
    toy = Toy("edm")
    toy.sigmas = torch.linspace(0.002, 80.0, 1000)
    return toy


def test_the_ramp_is_that_of_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(41)
    u = torch.linspace(1, 0, 41, dtype=torch.float64)
    torch.testing.assert_close(
        Karras().quantile(u, edm()), scheduler.sigmas[:41].float(), rtol=1e-5, atol=0
    )


def test_what_it_means_for_low_levels():
    """The median is 2.52, and 21 of 100 levels are below 0.1; of the log-normal law's, half are below 0.30."""
    law = Karras()
    median = law.quantile(torch.tensor([0.5], dtype=torch.float64), edm())
    assert float(median) == pytest.approx(2.52, abs=0.01)
    assert float(law.cdf(torch.tensor([0.1]), edm())) == pytest.approx(0.21, abs=0.005)
