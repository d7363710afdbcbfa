# SPDX-License-Identifier: Apache-2.0
"""Cosine with restarts against diffusers and by hand."""

import pytest

from graft.trainers.optimizers.schedules.cosine_restarts import CosineRestarts
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors


@pytest.mark.parametrize("cycles", [1, 2, 5])
@pytest.mark.parametrize("warmup,total", CASES)
def test_every_step_is_that_of_diffusers(warmup, total, cycles):
    ours = CosineRestarts(warmup, cycles)
    factors = [ours.factor(step, total) for step in range(total)]
    wanted = diffusers_factors("cosine_with_restarts", warmup, total, num_cycles=cycles)
    # Where the plan ends with the warm-up, the library skips the peak.
    assert factors == wanted or (warmup + 1 == total and factors[:-1] == wanted[:-1])


def test_values_by_hand():
    """Two falls over 9 steps: 1 at steps 0 and 4, a half at 2 and 6, and 0 at the last."""
    factors = [CosineRestarts(0, 2).factor(step, 9) for step in range(9)]
    assert factors[0] == factors[4] == 1.0
    assert [factors[2], factors[6]] == pytest.approx([0.5, 0.5])
    assert factors[8] == 0.0
    assert CosineRestarts(0, 2, 0.5).factor(6, 9) == pytest.approx(0.75)
