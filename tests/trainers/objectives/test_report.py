# SPDX-License-Identifier: Apache-2.0
"""The numbers of the reports, from laws and losses that are known in closed form."""

import math

import pytest
import scipy.stats
import torch

from graft.trainers.objectives import NOISE, WEIGHTS, Objective
from graft.trainers.objectives.report import loss_by_level, shares, spread
from tests.trainers.toy import Toy


def test_shares_of_the_log_normal_law_are_scipys():
    toy = Toy("edm")
    found = spread(Objective(NOISE.parse("log-normal", "p_mean=0, p_std=1")), toy, bins=30)
    assert found.is_log and len(found.edges) == 31
    law = scipy.stats.norm()
    low, high = law.cdf(math.log(0.03)), law.cdf(math.log(14.6))
    for a, b, share in zip(found.edges[:-1], found.edges[1:], found.drawn, strict=True):
        expected = (law.cdf(math.log(b)) - law.cdf(math.log(a))) / (high - low)
        assert share == pytest.approx(expected, abs=1e-4)
    assert sum(found.drawn) == pytest.approx(1.0)
    five, half, ninety_five = (math.exp(law.ppf(low + q * (high - low))) for q in (0.05, 0.5, 0.95))
    assert found.quantiles == pytest.approx((five, half, ninety_five), rel=1e-3)


def test_what_counts_is_drawn_times_weight():
    """Uniform t with w = t^2 (x0 on a flow model): the cumulated share is t^3, so its middle is 2^(-1/3) = 0.794."""
    objective = Objective(NOISE.get("uniform")(), WEIGHTS.get("x0")())
    found = spread(objective, Toy("flow"), bins=100)
    assert not found.is_log
    assert found.drawn == pytest.approx([0.01] * 100, abs=2e-4)
    middle = [(a + b) / 2 for a, b in zip(found.edges[:-1], found.edges[1:], strict=True)]
    assert found.weight == pytest.approx([t * t for t in middle], rel=1e-4)
    assert shares(found.counted, found.edges, (0.5,))[0] == pytest.approx(0.794, abs=0.012)


def test_losses_are_averaged_by_level_and_by_half():
    loss_map = {
        "loss": [0.0] * 4,
        "sigma": [[0.1, 0.9], [0.15], [0.2, 0.8], []],
        "sample_loss": [[1.0, 5.0], [3.0], [8.0, math.nan], []],
    }
    found = loss_by_level(loss_map, bins=2)
    assert found.edges == pytest.approx((0.1, 0.5, 0.9)) and not found.is_log
    assert found.count == (3, 1)
    assert found.mean == pytest.approx((4.0, 5.0))
    assert found.early == pytest.approx((2.0, 5.0))
    assert found.late[0] == 8.0 and math.isnan(found.late[1])


def test_the_bins_of_a_wide_range_are_logarithmic():
    sigma = torch.logspace(-1, 1, 101).tolist()
    found = loss_by_level({"sigma": [sigma], "sample_loss": [sigma]}, bins=10)
    assert found.is_log
    assert found.count == pytest.approx([10] * 10, abs=1) and sum(found.count) == 101
    assert found.edges[5] == pytest.approx(1.0)


def test_one_level_has_a_bin():
    found = loss_by_level({"sigma": [[0.5]], "sample_loss": [[2.0]]}, bins=3)
    assert sum(found.count) == 1 and found.mean[found.count.index(1)] == 2.0


@pytest.mark.parametrize(
    "loss_map", [{"loss": [1.0]}, {"loss": [], "sigma": [], "sample_loss": []}]
)
def test_the_loss_map_of_another_trainer_is_named(loss_map):
    with pytest.raises(ValueError, match="no noise levels in it"):
        loss_by_level(loss_map)
