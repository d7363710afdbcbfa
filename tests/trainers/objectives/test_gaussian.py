# SPDX-License-Identifier: Apache-2.0
"""Plain noise: the draw named noise of each slot, standard normal."""

import torch

from graft.trainers import random
from graft.trainers.objectives.noisings.gaussian import Gaussian
from graft.trainers.random import Draws


def test_it_is_the_keyed_draw():
    made = Gaussian()(torch.zeros(3, 4, 8, 8), Draws(7, 2, range(1, 4), 4))
    assert torch.equal(made, random.normal((4, 8, 8), 7, 2, (1, 2, 3)))
    large = Gaussian()(torch.zeros(1, 4, 128, 128), Draws(0, 0, [0], 1))
    assert abs(float(large.mean())) < 0.01 and abs(float(large.var()) - 1) < 0.02
