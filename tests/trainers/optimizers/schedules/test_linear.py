# SPDX-License-Identifier: Apache-2.0
"""Linear decay against diffusers and by hand."""

import pytest

from graft.trainers.optimizers.schedules.linear import Linear
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors


@pytest.mark.parametrize("warmup,total", [case for case in CASES if case[0] + 1 < case[1]])
def test_every_step_is_that_of_diffusers(warmup, total):
    factors = [Linear(warmup).factor(step, total) for step in range(total)]
    assert factors == diffusers_factors("linear", warmup, total)


def test_values_by_hand():
    """A straight line from step 2, the end of the warm-up, to the last of 10 steps."""
    wanted = [1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    assert [Linear(2).factor(step, 10) for step in range(10)] == pytest.approx(wanted)
    assert Linear(0, 0.2).factor(5, 11) == pytest.approx(0.6)


def test_the_only_step_after_the_warm_up_is_at_the_peak():
    """As with the other schedules: there is no way down in one step."""
    assert Linear().factor(0, 1) == 1.0
    factors = [Linear(warmup=4).factor(step, 5) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
