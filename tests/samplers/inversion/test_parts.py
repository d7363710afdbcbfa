# SPDX-License-Identifier: Apache-2.0
"""What is asked of levels and methods before an inversion, and where a replay begins."""

import pytest
import torch

from graft.samplers import KeyedNoise, Levels
from graft.samplers.inversion import INVERSIONS
from graft.samplers.inversion.parts import check, course
from tests.samplers.gaussian import denoise

FLOW = Levels("flow", torch.linspace(0.001, 1, 1000, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        ([], "SIGMAS has no level"),
        ([3.0], "SIGMAS has one level"),
        ([0.0, 3.0], "rises from 0 to 3"),
        ([3.0, float("nan")], "levels are numbers"),
        ([2.0, 2.0], "All 2 SIGMAS are 2"),
    ],
)
def test_levels_that_are_none_are_refused(sigmas, said):
    with pytest.raises(ValueError, match=said):
        course(torch.tensor(sigmas))


def test_levels_that_are_there_twice_count_once():
    assert course(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0])) == (3.0, 1.0, 0.0)


@pytest.mark.parametrize("name", INVERSIONS.names())
def test_noise_is_not_drawn_for_a_flow_model_nor_onto_noise(name):
    method = INVERSIONS.get(name)()
    if not method.is_drawn:
        check(method, FLOW, [1.0, 0.5, 0.25])
        return
    with pytest.raises(ValueError, match=f"{name} draws the noise .* flow model .* Take ddim"):
        check(method, FLOW, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"SIGMAS ends at 0.25, and .*level 0"):
        check(method, None, [1.0, 0.25])


@pytest.mark.parametrize(
    ("skip", "first"), [(0.0, 0), (0.1, 1), (0.15, 1), (0.3, 3), (0.99, 9), (1.0, 9)]
)
def test_a_share_of_the_steps_is_skipped_and_one_stays(skip, first):
    sigmas = [float(10 - i) for i in range(11)]
    made = INVERSIONS.get("ledits-ddim")().invert(denoise, torch.ones(1, 2), sigmas, KeyedNoise(0))
    assert made.steps == 10 and made.first(skip) == first


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ddim", "iterations=0", "iterations is 0"),
        ("ddim", "guess=best", "Unknown guess 'best'"),
        ("ledits-ddim", "eta=0", "eta is 0"),
        ("ledits-ddim", "sweeps=3", "Unknown option"),
        ("dpmpp-2m", "sweeps=0", "sweeps is 0"),
        ("ddpm", "", "Unknown inversion 'ddpm'"),
    ],
)
def test_settings_have_limits(name, options, said):
    with pytest.raises(ValueError, match=said):
        INVERSIONS.parse(name, options)
