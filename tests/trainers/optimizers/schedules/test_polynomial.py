# SPDX-License-Identifier: Apache-2.0
"""Polynomial decay against diffusers and by hand."""

import pytest

from graft.trainers.optimizers.schedules.polynomial import Polynomial
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors

# diffusers divides by zero where the plan ends with the warm-up
WHOLE = [(warmup, total) for warmup, total in CASES if warmup + 1 < total]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("warmup,total", WHOLE)
def test_every_step_is_that_of_diffusers(warmup, total, power):
    """The library ends at the rate 1e-7, which is the fraction 1e-7 of a peak of 1."""
    ours = Polynomial(warmup, power, floor=1e-7)
    factors = [ours.factor(step, total) for step in range(total)]
    assert factors == diffusers_factors("polynomial", warmup, total, power=power)


def test_values_by_hand():
    """(1 - step / 4)^2 of 5 steps; with a floor, that much of the rest."""
    assert [Polynomial().factor(step, 5) for step in range(5)] == [1, 0.5625, 0.25, 0.0625, 0]
    assert Polynomial(power=3.0, floor=0.2).factor(2, 5) == pytest.approx(0.2 + 0.8 * 0.125)
    assert Polynomial(4).factor(4, 5) == 1.0
