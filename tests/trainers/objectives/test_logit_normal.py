# SPDX-License-Identifier: Apache-2.0
"""The logit-normal law: 97.5 % lie below sigmoid(1.959964) = 0.876529, the mean moves the median."""

import math

import pytest
import torch

from graft.trainers.objectives.noise.logit_normal import LogitNormal
from tests.trainers.toy import Toy


def test_quantiles_by_hand():
    toy, u = Toy("flow"), torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)
    assert LogitNormal().quantile(u, toy).tolist() == pytest.approx(
        [0.123471, 0.5, 0.876529], abs=1e-6
    )
    moved = LogitNormal(mean=1.0, std=0.5).quantile(u, toy)
    assert float(moved[1]) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)
    assert LogitNormal().cdf(torch.tensor([0.876529]), toy).item() == pytest.approx(0.975, abs=1e-6)


def test_the_shift_of_a_flow_model_does_not_count():
    toy, u = Toy("flow"), torch.rand(9, dtype=torch.float64)
    before = LogitNormal().quantile(u, toy)
    toy.sigmas = 3 * toy.sigmas / (1 + 2 * toy.sigmas)
    assert torch.equal(LogitNormal().quantile(u, toy), before)
