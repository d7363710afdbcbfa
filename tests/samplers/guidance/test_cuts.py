# SPDX-License-Identifier: Apache-2.0
"""Parts of pictures: where they lie, how they are turned, and that they are the picture's."""

import torch

from graft.samplers.guidance import cuts


def ramp(height=12, width=16):
    """Red is the column, green the row, in 0..1; blue is 0."""
    x = (torch.arange(width).double() + 0.5) / width
    y = (torch.arange(height).double() + 0.5) / height
    red, green = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([red, green, torch.zeros(height, width).double()])[None]


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_of_the_picture_is_the_picture():
    square = ramp(8, 8)
    assert torch.equal(cuts.whole(square, 8), square)
    same = cuts.random(square, 2, 8, 1.0, 0.0, False, draws())
    # Only the shape may differ: with ratios from 3:4 to 4:3 a side is at least sqrt(3 / 4) of it.
    assert same.shape == (2, 3, 8, 8)
    assert (same[:, 0].amax((1, 2)) - same[:, 0].amin((1, 2)) >= 0.75).all()


def test_the_middle_is_kept_when_a_picture_is_fitted():
    fitted = cuts.fitted(ramp(12, 16), 12, 12)
    assert torch.allclose(fitted[0, 0, 0], ramp(12, 16)[0, 0, 0, 2:14])
    assert cuts.fitted(ramp(5, 7), 30, 20).shape == (1, 3, 30, 20)


def test_a_mirrored_part_runs_the_other_way_and_half_of_them_are():
    parts = cuts.random(ramp(), 400, 8, 0.5, 0.0, True, draws())
    rising = parts[:, 0, 4, -1] > parts[:, 0, 4, 0]
    assert 160 < int(rising.sum()) < 240
    assert (parts[:, 1, -1, 4] > parts[:, 1, 0, 4]).all()


def test_a_turn_is_by_the_angle_that_was_drawn():
    """On a linear ramp the turn is the ratio of the slopes along and across."""
    part = cuts._turned(ramp(32, 32), 30.0, False)[0, 0]
    across, down = part[16, 17] - part[16, 15], part[17, 16] - part[15, 16]
    assert torch.allclose(
        torch.atan2(-down, across).rad2deg(), torch.tensor(30.0).double(), atol=1e-6
    )


def test_parts_stay_in_the_picture_and_have_the_shares_that_were_asked_for():
    parts = cuts.random(ramp(), 200, 16, 0.25, 5.0, True, draws())
    assert parts.min() >= 0 and parts.max() <= 1
    assert cuts.random(ramp(3, 3), 20, 4, 0.01, 45.0, True, draws()).isfinite().all()


def test_only_the_generator_counts():
    torch.manual_seed(1)
    first = cuts.random(ramp(), 3, 8, 0.1, 5.0, True, draws(7))
    torch.manual_seed(2)
    assert torch.equal(first, cuts.random(ramp(), 3, 8, 0.1, 5.0, True, draws(7)))
    assert not torch.equal(first, cuts.random(ramp(), 3, 8, 0.1, 5.0, True, draws(8)))


def test_gradients_reach_the_picture():
    picture = ramp().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cuts.random(x, 2, 4, 0.3, 5.0, True, draws()), picture
    )
