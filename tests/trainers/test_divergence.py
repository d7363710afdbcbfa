# SPDX-License-Identifier: Apache-2.0
"""When a run is called diverging: the median by hand, and that healthy runs are left alone."""

import math

import pytest
import torch

from graft.trainers.divergence import FIRST, WINDOW, Divergence


def seen(losses, factor=5.0):
    """The number of losses after which the run is stopped, None when it is not."""
    rule = Divergence(factor)
    for count, loss in enumerate(losses, 1):
        if rule.see(loss):
            return count
    return None


def test_the_level_is_the_median_of_the_last_window():
    """After 100 losses of 1 and 25 of 9, half of the last 50 are 9: (1 + 9) / 2."""
    rule = Divergence(0.0)
    for loss in [1.0] * 100 + [9.0] * 25:
        rule.see(loss)
    assert (rule.level, rule.best, rule.early) == (5.0, 1.0, 1.0)


def test_a_jump_stops_the_run_when_it_has_lasted():
    """The 25th loss of 100 lifts the median of 50 to 50.5; the 50th step above is the 74th of them."""
    assert WINDOW == 50
    assert seen([1.0] * 200 + [100.0] * 200) == 200 + 25 + 49


def test_zero_never_stops():
    assert seen([1.0] * 200 + [1e9] * 500, factor=0.0) is None


def test_a_spike_is_not_a_divergence():
    assert seen([0.1] * 300 + [20.0] * 24 + [0.1] * 300) is None


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_not_a_divergence(seed):
    """Log-normal losses, of which one in twenty is 5 times their median and more, for 4000 steps."""
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.randn(4000, generator=generator)).exp() * 0.05
    assert seen(losses.tolist()) is None


def test_a_run_that_loses_some_of_what_it_has_learned_is_better_than_at_its_start():
    falling = [math.exp(-step / 100) for step in range(500)]  # to 0.7 %
    assert seen(falling + [0.5] * 500) is None
    assert seen(falling + [1.5] * 500) is not None


def test_who_goes_on_gets_a_window_of_steps():
    rule = Divergence(5.0)
    assert any(rule.see(loss) for loss in [1.0] * 100 + [100.0] * 100)
    rule.forgive()
    assert [rule.see(100.0) for _ in range(WINDOW)] == [False] * (WINDOW - 1) + [True]


def test_nothing_is_judged_by_the_first_losses():
    rule = Divergence(5.0)
    for _ in range(FIRST - 1):
        rule.see(1.0)
    assert rule.level == rule.best == math.inf
    rule.see(1.0)
    assert rule.level == rule.best == rule.early == 1.0
