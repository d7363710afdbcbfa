# SPDX-License-Identifier: Apache-2.0
"""SDE-DPM-Solver++(2M): its ODE at eta 0, and mean and spread on the gaussian at eta 1."""

import pytest
import torch

from graft.samplers import KeyedNoise, sample
from graft.samplers.dpmpp_2m import DPMpp2M
from graft.samplers.dpmpp_2m_sde import DPMpp2MSDE
from tests.samplers.gaussian import MU, START, C, denoise, karras, network, no_noise


def test_without_eta_it_is_dpmpp_2m():
    x = START * torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    ends = [
        sample(kind, network(), x, karras(12), no_noise)
        for kind in (DPMpp2M(), DPMpp2MSDE(eta=0.0))
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_end_has_the_datas_mean_and_spread(eta, solver):
    """Of n draws the mean is off by c / sqrt n, the standard deviation by c / sqrt(2 n): 4 of these, and 1 % bias."""
    n = 40_000
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, n, generator=generator, dtype=torch.float64)
    x = MU + (C**2 + START**2) ** 0.5 * x
    end = sample(DPMpp2MSDE(eta=eta, solver=solver), denoise, x, karras(80), KeyedNoise(1))
    assert abs(float(end.mean()) - MU) < 4 * C / n**0.5
    assert abs(float(end.std()) - C) < 4 * C / (2 * n) ** 0.5 + 0.01 * C


def test_the_first_step_adds_what_the_sde_adds():
    """From 2 to 1 h = ln 2: with D = 0 and x = 0, x' = 1 sqrt(1 - e^(-2 ln 2)) z = sqrt(3 / 4) z."""
    zero = torch.zeros(1, 1)
    end = sample(
        DPMpp2MSDE(),
        lambda x, sigma: torch.zeros_like(x),
        zero,
        torch.tensor([2.0, 1.0]),
        lambda like, sigma: torch.ones_like(like),
    )
    assert float(end) == pytest.approx(0.75**0.5)
