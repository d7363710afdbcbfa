# SPDX-License-Identifier: Apache-2.0
"""Linear decay against diffusers and by hand."""

import pytest

from graft.trainers.optimizers.schedules.linear import Linear
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors


@pytest.mark.parametrize("warmup,total", CASES)
def test_every_step_is_that_of_diffusers(warmup, total):
    factors = [Linear(warmup).factor(step, total) for step in range(total)]
    assert factors == diffusers_factors("linear", warmup, total)


def test_values_by_hand():
    """A straight line from step 2, the end of the warm-up, to the last of 10 steps."""
    wanted = [1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    assert [Linear(2).factor(step, 10) for step in range(10)] == pytest.approx(wanted)
    assert Linear(0, 0.2).factor(5, 11) == pytest.approx(0.6)
