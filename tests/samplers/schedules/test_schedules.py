# SPDX-License-Identifier: Apache-2.0
"""What every schedule must satisfy, over the registry, and wrong ranges."""

import pytest
import torch

from graft.samplers import SCHEDULES, Levels, course
from tests.samplers.gaussian import discrete

LEVELS = discrete()
FLOW = Levels("flow", torch.linspace(0.001, 1, 1000, dtype=torch.float64))
EDM = Levels("edm", torch.linspace(0.002, 80, 1000, dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_it_falls_from_its_highest_level_to_zero(name, steps):
    schedule = SCHEDULES.get(name)()
    found = course(schedule, steps, LEVELS)
    assert found.dtype == torch.float32 and found.shape == (steps + 1,)
    assert float(found[-1]) == 0 and bool((found.diff() < 0).all())
    levels = schedule.levels(steps, LEVELS)
    assert levels.dtype == torch.float64
    torch.testing.assert_close(levels.float(), found[:-1])


@pytest.mark.parametrize("name", [n for n in SCHEDULES.names() if n not in ("distilled", "iddpm")])
def test_its_ends_are_those_that_are_set(name):
    made = SCHEDULES.get(name)(sigma_min=0.5, sigma_max=7.0)
    found = made.levels(9, EDM)
    assert (float(found[0]), float(found[-1])) == (pytest.approx(7.0), pytest.approx(0.5))


@pytest.mark.parametrize("name", [n for n in SCHEDULES.names() if n != "distilled"])
@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0)])
def test_a_lowest_level_that_is_not_below_the_highest_is_refused(name, low, high):
    with pytest.raises(ValueError, match=r"sigma_min is \d and sigma_max 1.*must be below it"):
        course(SCHEDULES.get(name)(sigma_min=low, sigma_max=high), 5, LEVELS)


def test_vp_with_one_end_compares_it_with_its_own():
    with pytest.raises(ValueError, match="sigma_min must be below it"):
        SCHEDULES.get("vp")(sigma_min=200.0)


@pytest.mark.parametrize("name", ["karras", "exponential", "ve", "iddpm", "design-space"])
def test_a_level_of_zero_is_no_end(name):
    with pytest.raises(ValueError, match="sigma_min is 0; it must be at least 1e-06"):
        SCHEDULES.get(name)(sigma_min=0.0)


@pytest.mark.parametrize("name", ["vp", "discrete"])
def test_a_level_too_small_is_no_end_where_zero_stands_for_another(name):
    with pytest.raises(ValueError, match="sigma_max is 1e-09; it must be at least 1e-06, or 0"):
        SCHEDULES.get(name)(sigma_max=1e-9)


def test_settings_without_levels_are_refused():
    with pytest.raises(ValueError, match="rho is 0.01; it must be 0 or at least 0.1"):
        SCHEDULES.get("design-space")(rho=0.01)
    with pytest.raises(ValueError, match="vp has levels that are beyond all numbers"):
        course(SCHEDULES.get("vp")(beta_d=10_000.0), 5)


@pytest.mark.parametrize("name", ["discrete", "distilled"])
def test_a_models_schedule_needs_the_model(name):
    with pytest.raises(ValueError, match=f"The schedule {name} is made of a model's own levels"):
        course(SCHEDULES.get(name)(), 5)


def test_levels_above_a_flow_models_are_refused():
    with pytest.raises(ValueError, match="sigma_max is 80; the levels of a flow model are times"):
        course(SCHEDULES.get("karras")(), 5, FLOW)
    found = course(SCHEDULES.get("discrete")(), 5, FLOW)
    assert float(found[0]) == 1.0


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        course(SCHEDULES.get("karras")(), 0)
