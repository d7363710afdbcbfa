# SPDX-License-Identifier: Apache-2.0
"""Pyramid noise: unit variance, and the share of the coarse grids by hand."""

import pytest
import torch

from graft.trainers.objectives.noisings.pyramid import Pyramid
from graft.trainers.random import Draws


def test_every_sample_has_unit_spread():
    made = Pyramid()(torch.zeros(5, 4, 16, 12), Draws(1, 1, range(5), 5))
    torch.testing.assert_close(made.std((1, 2, 3)), torch.ones(5))


def test_the_share_of_the_coarsest_grid():
    """4 x 4 with discount 1: r > 2 makes the second grid 1 x 1, and it is the last.

    Noise, a grid of the same size and one value for each channel: variance 1 + 1 + 1. The mean of a channel has
    (2 / 16 + 1) / 3 = 0.375 after the division; plain noise has 0.0625.
    """
    made = Pyramid(discount=1.0)(torch.zeros(4, 512, 4, 4), Draws(1, 1, range(4), 4))
    assert float(made.mean((2, 3)).var()) == pytest.approx(0.375, rel=0.08)


def test_latents_without_height_and_width_are_refused():
    with pytest.raises(ValueError, match="height and width"):
        Pyramid()(torch.zeros(1, 8, 20), Draws(1, 1, [0], 1))


def test_video_latents_have_a_grid_for_every_frame():
    made = Pyramid()(torch.zeros(1, 3, 5, 8, 8), Draws(1, 1, [0], 1))
    assert made.shape == (1, 3, 5, 8, 8)
    assert not torch.equal(made[0, 0, 0], made[0, 0, 1])
