# SPDX-License-Identifier: Apache-2.0
"""The loss plot: where the held-out pictures' line is."""

import pytest
import torch

pytestmark = pytest.mark.comfy


def places(picture, colour):
    """Pixels of a colour, as ``[N, 2]`` rows and columns."""
    wanted = torch.tensor(colour, dtype=torch.float32) / 255
    return ((picture[0] - wanted).abs().amax(-1) < 1e-3).nonzero()


def test_validations_are_dots_at_their_step_and_height():
    """101 losses of 1, so the axis is 0..1 in a box from 70 to 620 and 43 to 309: 0.5 is halfway up."""
    from graft.host.drawing import plots

    losses = [1.0] * 101
    assert len(places(plots.loss_plot(losses), plots.HELD_OUT)) == 0
    picture = plots.loss_plot(losses, validation=[(51, 0.5)])
    found = places(picture, plots.HELD_OUT)
    dot = found[found[:, 0] > 43].float().mean(0)
    assert dot.tolist() == pytest.approx([(43 + 309) / 2, (70 + 620) / 2], abs=1.5)


def test_a_validation_above_the_losses_is_inside_the_picture():
    from graft.host.drawing import plots

    picture = plots.loss_plot([0.1] * 20, validation=[(0, 0.9), (10, float("nan")), (20, 0.7)])
    rows = places(picture, plots.HELD_OUT)
    assert rows[rows[:, 0] > 43].numel() and int(rows[:, 0].max()) < 309
