# SPDX-License-Identifier: Apache-2.0
"""Interrupts at random moments of a real server cost nothing, change nothing and leak nothing."""

import pytest

from graft.benchmarks.skeleton import interrupts

pytestmark = pytest.mark.server


def check(trail, count):
    """Nothing was lost, changed or otherwise than in the run that nobody interrupted."""
    assert len(trail.reached) == count
    assert not trail.lost and not trail.changed and not trail.unequal, trail
    assert trail.whole >= 1


def test_five_interrupts_at_random_moments(server):
    trail = interrupts.Interrupts(server, seed=3).go(5)
    check(trail, 5)
    assert any(reached.isdigit() for reached in trail.reached), trail.reached


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_interrupts_at_random_moments(tmp_path):
    from tests.host.server import ComfyServer

    with ComfyServer(tmp_path) as server:
        trail = interrupts.Interrupts(server).go(100)
    check(trail, 100)
    assert trail.whole >= 10
    assert len({reached for reached in trail.reached if reached.isdigit()}) >= 10
    if not trail.memory:
        pytest.skip("this system does not say how much memory a process has")
    assert trail.growth <= 0.05, trail.memory
