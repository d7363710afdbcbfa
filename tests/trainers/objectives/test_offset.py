# SPDX-License-Identifier: Apache-2.0
"""Offset noise: the variances of a pixel and of a channel's mean, and kohya's adaptive strength."""

import pytest
import torch

from graft.trainers.objectives.noisings.gaussian import Gaussian
from graft.trainers.objectives.noisings.offset import Offset
from graft.trainers.random import Draws

CLEAN = torch.zeros(400, 4, 8, 8)
DRAWS = Draws(3, 1, range(400), 400)


def test_variances_are_those_of_the_sum():
    """Pixel: 1 + c^2 = 1.25. Mean of a channel of 64: 1 / 64 + c^2 = 0.265625."""
    made = Offset(strength=0.5)(CLEAN, DRAWS)
    assert float(made.var()) == pytest.approx(1.25, rel=0.02)
    assert float(made.mean((2, 3)).var()) == pytest.approx(0.265625, rel=0.08)


def test_random_strength_is_uniform():
    """E c^2 = 0.5^2 / 3 for c ~ U(0, 0.5), so the mean of a channel has variance 1 / 64 + 0.25 / 3."""
    made = Offset(strength=0.5, random=True)(CLEAN, DRAWS)
    assert float(made.mean((2, 3)).var()) == pytest.approx(1 / 64 + 0.25 / 3, rel=0.1)


def test_adaptive_strength_follows_the_mean_of_the_channel():
    """c = strength + adaptive |mean|: a channel at -2 has 0.1 + 0.3 * 2 = 0.7; a negative one is 0."""
    clean = CLEAN.clone()
    clean[:, 1] = -2.0
    plain = Gaussian()(clean, DRAWS)
    added = (Offset(0.1, adaptive=0.3)(clean, DRAWS) - plain)[:, :, 0, 0]
    unit = (Offset(1.0)(clean, DRAWS) - plain)[:, :, 0, 0]
    torch.testing.assert_close(added[:, 0], 0.1 * unit[:, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(added[:, 1], 0.7 * unit[:, 1], rtol=1e-3, atol=1e-5)
    off = Offset(0.1, adaptive=-1.0)(clean, DRAWS) - plain
    assert float(off[:, 1].abs().max()) == 0.0


def test_no_strength_is_plain_noise():
    assert torch.equal(Offset(strength=0.0)(CLEAN, DRAWS), Gaussian()(CLEAN, DRAWS))
