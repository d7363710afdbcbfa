# SPDX-License-Identifier: Apache-2.0
"""Seconds a step: warned of when they grow for good, and seldom."""

import time

from graft.trainers.drift import MOST, WARM_UP, WINDOW, Drift
from tests.trainers.test_loop import make


def warnings(seconds):
    """Number of the step, from 1, and text of each warning."""
    drift = Drift()
    told = [(step, drift.see(one)) for step, one in enumerate(seconds, 1)]
    return [(step, text) for step, text in told if text]


def test_a_slower_second_half_is_told_once_with_both_times():
    """The median of 20 is over 1.5 times the early one as soon as more than half are slow."""
    ((step, text),) = warnings([1.0] * 60 + [2.0] * 200)
    assert step == 60 + WINDOW // 2 + 1
    assert "takes 2 s now, before it took 1 s" in text
    assert "batch_size" in text and "another" in text


def test_a_great_jump_is_told_once_too():
    assert len(warnings([1.0] * 60 + [14.0] * 200)) == 1


def test_slow_first_steps_do_not_hide_it_and_do_not_count():
    assert not warnings([30.0] * WARM_UP + [1.0] * 300)
    assert warnings([30.0] * WARM_UP + [1.0] * 60 + [1.7] * 60)


def test_some_slow_steps_are_no_drift():
    assert not warnings(([1.0] * 6 + [9.0] * 4) * 50)


def test_ever_slower_is_told_a_few_times_at_most():
    assert len(warnings([1.02**step for step in range(1000)])) == MOST


def test_milliseconds_are_the_machines_noise():
    assert not warnings([0.004] * 60 + [0.02] * 100)


def test_a_run_with_a_clock_that_slows_down(monkeypatch):
    """The loop reads the clock twice a step: 1 s a step at first, then 3; told when half of 20 steps are slow."""
    from graft.trainers.monitor import Monitor

    told, now, calls = [], [0.0], [0]

    def clock():
        calls[0] += 1
        if calls[0] % 2 == 0:
            now[0] += 1.0 if calls[0] < 100 else 3.0
        return now[0]

    loop = make(steps=90, batch=1, accumulate=1, preserve=0.0)
    loop.monitor = Monitor(loop.network.tensors, loop.plan, told.append)
    monkeypatch.setattr(time, "perf_counter", clock)
    loop.run()
    (warned,) = told
    assert "takes 2 s now, before it took 1 s" in warned.text
