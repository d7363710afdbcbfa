# SPDX-License-Identifier: Apache-2.0
"""The log-normal law of EDM against scipy and the numbers of its defaults."""

import math

import pytest
import scipy.stats
import torch

from graft.trainers.objectives.noise.log_normal import LogNormal
from tests.trainers.toy import Toy


def test_quantiles_are_scipys():
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    law = scipy.stats.lognorm(s=0.7, scale=math.exp(0.3))
    ours = LogNormal(p_mean=0.3, p_std=0.7).quantile(u, Toy("edm"))
    torch.testing.assert_close(
        ours.double(), torch.from_numpy(law.ppf(u.numpy())), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(LogNormal(0.3, 0.7).cdf(ours, Toy("edm")), u, rtol=1e-5, atol=0)


def test_defaults_are_the_papers():
    """Median exp(-1.2) = 0.301194; P(sigma < 0.1) = Phi((ln 0.1 + 1.2) / 1.2) = Phi(-0.918821) = 0.179094."""
    law, toy = LogNormal(), Toy("edm")
    assert float(law.quantile(torch.tensor([0.5], dtype=torch.float64), toy)) == pytest.approx(
        0.301194, rel=1e-5
    )
    assert float(law.cdf(torch.tensor([0.1]), toy)) == pytest.approx(0.179094, rel=1e-4)
