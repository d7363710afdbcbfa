# SPDX-License-Identifier: Apache-2.0
"""Which step a call of the model belongs to, whatever sampler it comes from."""

import math

import pytest

from graft.samplers.guidance import Steps

LEVELS = [8.0, 4.0, 2.0, 1.0, 0.0]


def at(steps, sigma):
    step = steps.at(sigma)
    return step.index, step.next


def test_levels_of_the_list_are_the_steps_from_there():
    steps = Steps(LEVELS)
    assert [at(steps, s) for s in LEVELS[:-1]] == [(0, 4.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    assert at(steps, 2.0 * (1 + 1e-6)) == at(steps, 2.0 * (1 - 1e-6)) == (2, 1.0)


def test_between_two_levels_it_is_the_next_step():
    assert at(Steps(LEVELS), 3.0) == (2, 1.0)
    assert at(Steps(LEVELS), 0.5) == (4, 0.0)


def test_a_churned_level_belongs_to_its_own_step_even_above_the_level_before():
    steps = Steps([2.0, 1.8, 1.6, 0.0])
    assert at(steps, 2.5) == (0, 1.8)
    steps.done(0)
    assert at(steps, 2.3) == (1, 1.6)  # 1.8 x 1.28 is above 2
    assert at(steps, 1.8) == (1, 1.6)
    steps.done(1)
    assert at(steps, 2.0 * 1.1) == (2, 0.0)


def test_heun_asks_at_the_level_a_step_leads_to_as_well():
    steps, seen = Steps(LEVELS), []
    for i, sigma in enumerate(LEVELS[:-1]):
        seen.append(steps.at(1.1 * sigma).index)
        steps.done(i)
        if LEVELS[i + 1]:
            seen.append(steps.at(LEVELS[i + 1]).index)
    assert seen == [0, 1, 1, 2, 2, 3, 3]


def test_equal_levels_do_not_divide_by_zero():
    step = Steps([2.0, 1.0, 1.0, 0.5]).at(1.0)
    assert (step.index, step.next, step.share) == (1, 0.5, 0.5)


def test_a_last_level_above_zero_leads_to_zero():
    assert Steps([2.0, 1.0]).at(1.0).next == 0.0


def test_a_flow_at_one_holds_no_picture_and_later_counts_in_its_own_scale():
    steps = Steps([1.0, 0.8, 0.5, 0.0], signal=lambda t: 1 - t, noise=lambda t: t)
    assert not steps.at(1.0).has_picture
    step = steps.at(0.8)
    assert step.has_picture
    # sigma = t / (1 - t) = 4: 1 + sigma^2 = 17; an Euler step in it goes from 4 to 1: 3/4 of a change.
    assert math.isclose(step.gain, 17.0)
    assert math.isclose(step.share, 0.75)


@pytest.mark.parametrize("levels", [[1.0], [], [0.0, 1.0, 2.0], [3.0, 2.0, 2.5, 0.0]])
def test_lists_that_do_not_fall_are_refused(levels):
    with pytest.raises(ValueError, match="Guidance needs"):
        Steps(levels)
