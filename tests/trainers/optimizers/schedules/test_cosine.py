# SPDX-License-Identifier: Apache-2.0
"""Cosine decay against diffusers and by hand."""

import math

import pytest

from graft.trainers.optimizers.schedules.cosine import Cosine
from tests.trainers.optimizers.schedules.parity import CASES, diffusers_factors


@pytest.mark.parametrize("warmup,total", CASES)
def test_every_step_is_that_of_diffusers(warmup, total):
    factors = [Cosine(warmup).factor(step, total) for step in range(total)]
    assert factors == diffusers_factors("cosine", warmup, total)


def test_values_by_hand():
    cosine = Cosine(warmup=0)
    assert cosine.factor(0, 101) == 1.0
    assert cosine.factor(50, 101) == pytest.approx(0.5)
    assert cosine.factor(25, 101) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert cosine.factor(100, 101) == pytest.approx(0.0, abs=1e-12)
    assert Cosine(floor=0.1).factor(100, 101) == pytest.approx(0.1)
