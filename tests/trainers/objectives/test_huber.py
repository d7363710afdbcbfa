# SPDX-License-Identifier: Apache-2.0
"""Pseudo-Huber loss and kohya's schedules of its delta."""

import math

import pytest
import torch

from graft.trainers.objectives.metrics.huber import Huber
from tests.trainers.toy import Toy

ONE = torch.tensor([1.0])


def test_values_by_hand():
    """delta = 1: 2 (sqrt(r^2 + 1) - 1) is 0.828427 at r = 1 and 2 (sqrt(10) - 1) at 3."""
    metric = Huber(delta=1.0, schedule="constant")
    found = metric(torch.tensor([[1.0, -3.0]]), ONE, Toy("eps"))
    torch.testing.assert_close(found, torch.tensor([[2 * (2**0.5 - 1), 2 * (10**0.5 - 1)]]))


def test_small_errors_are_squares_and_large_ones_lines():
    metric = Huber(delta=0.1, schedule="constant")
    small, large = metric(torch.tensor([[1e-4, 100.0]]), ONE, Toy("eps"))[0].tolist()
    assert small == pytest.approx(1e-8, rel=1e-4)  # sqrt(r^2 + c^2) - c is 0 in fp32
    assert large == pytest.approx(2 * 0.1 * 100, rel=2e-3)


def test_schedules_are_kohyas():
    """exponential: exp(-alpha t), alpha = -ln(delta) / T. snr: (1 - delta) / (1 + sigma)^2 + delta."""
    toy, t = Toy("eps"), torch.tensor([0, 250, 999])
    sigma = toy.sigmas[t]
    expected = torch.exp(math.log(0.1) / 1000 * t)
    torch.testing.assert_close(Huber(0.1, "exponential").deltas(sigma, toy), expected)
    expected = 0.9 / (1 + sigma) ** 2 + 0.1
    torch.testing.assert_close(Huber(0.1, "snr").deltas(sigma, toy), expected)
    assert Huber(0.3, "constant").deltas(sigma, toy).tolist() == pytest.approx([0.3] * 3)


def test_the_delta_of_each_sample_is_its_own():
    toy, sigma = Toy("eps"), torch.tensor([0.1, 9.0])
    together = Huber()(torch.ones(2, 3, 2, 2), sigma, toy)
    for i in range(2):
        assert torch.equal(Huber()(torch.ones(1, 3, 2, 2), sigma[i : i + 1], toy)[0], together[i])


def test_a_schedule_that_would_rise_is_refused():
    with pytest.raises(ValueError, match="schedule=constant"):
        Huber(delta=2.0)
    assert Huber(delta=2.0, schedule="constant").delta == 2.0
