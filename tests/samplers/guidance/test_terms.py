# SPDX-License-Identifier: Apache-2.0
"""How strongly a term acts, and when."""

import pytest

from graft.samplers.guidance import COURSES, LOSSES, Steps, Term

COLOR = LOSSES.get("color")()


def weights(course, start=0.0, end=1.0, count=10, **options):
    term = Term(COLOR, COURSES.get(course)(**options), 2.0, start, end)
    steps = Steps([10.0 - i for i in range(count)] + [0.0])
    found = []
    for i in range(count):
        step = steps.at(10.0 - i)
        found.append(term.weight(step) / step.gain)
    return found


@pytest.mark.parametrize("name", COURSES.names())
def test_courses_begin_with_the_whole_strength_and_end_with_the_last(name):
    course = COURSES.get(name)()
    assert course(0.0) == 1.0
    if name != "constant":
        assert abs(COURSES.get(name)(last=0.25)(1.0) - 0.25) < 1e-12
        assert abs(COURSES.get(name)(last=3.0)(0.5) - 2.0) < 1e-12


def test_a_linear_course_falls_in_equal_parts():
    assert weights("linear") == pytest.approx([2.0 * (1 - i / 10) for i in range(10)])


def test_only_steps_in_the_range_are_guided_and_the_course_runs_over_them():
    found = weights("linear", 0.2, 0.6)
    assert found == pytest.approx([0, 0, 2.0, 1.5, 1.0, 0.5, 0, 0, 0, 0])


def test_the_weight_is_the_strength_times_one_plus_sigma_squared():
    step = Steps([3.0, 0.0]).at(3.0)
    constant = COURSES.get("constant")()
    assert Term(COLOR, constant, 2.0).weight(step) == pytest.approx(20.0)
    assert Term(LOSSES.get("clip")(), constant, 2.0).weight(step) == pytest.approx(2 * 10**0.5)


def test_levels_without_a_picture_are_not_guided():
    assert Term(COLOR, COURSES.get("constant")(), 2.0).weight(Steps([4518.0, 1.0]).at(4518.0)) == 0


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.7, 0.2)])
def test_a_range_that_ends_before_it_begins_is_refused(start, end):
    with pytest.raises(ValueError, match="must begin before it ends"):
        Term(COLOR, COURSES.get("constant")(), 2.0, start, end)
