# SPDX-License-Identifier: Apache-2.0
"""A constant rate against diffusers and by hand."""

import pytest

from graft.trainers.optimizers.schedules.constant import Constant
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors


@pytest.mark.parametrize("warmup,total", CASES)
def test_every_step_is_that_of_diffusers(warmup, total):
    factors = [Constant(warmup).factor(step, total) for step in range(total)]
    assert factors == diffusers_factors("constant_with_warmup", warmup, total)


def test_values_by_hand():
    assert [Constant(3).factor(step, 9) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert Constant().factor(0, 1) == 1.0
