# SPDX-License-Identifier: Apache-2.0
"""Where lines lie, what is a gap, and pictures of anything."""

import math

import pytest
import torch

from graft.host.drawing.lines import Line, Lines, draw_lines
from graft.host.drawing.run_plot import COLORS


def where(image, index):
    """Rows and columns of the pixels in a line's color, below the legend."""
    pixels = (image[0] * 255).round().to(torch.uint8)[60:]
    return (pixels == torch.tensor(COLORS[index], dtype=torch.uint8)).all(-1).nonzero()


def test_lines_lie_where_their_values_are():
    """Of a rising and a falling line the left ends are low and high, the right ends the other way round."""
    lines = [Line("up", [0, 1, 2], [1, 2, 3]), Line("down", [0, 1, 2], [3, 2, 1])]
    image = draw_lines(Lines("t", lines, "step"))
    up, down = where(image, 0), where(image, 1)
    first, last = int(up[:, 1].min()), int(up[:, 1].max())
    rows = [
        float(one[one[:, 1] == edge][:, 0].float().mean())
        for one in (up, down)
        for edge in (first, last)
    ]
    assert rows[0] > rows[1] and rows[2] < rows[3]
    assert rows[0] == pytest.approx(rows[3], abs=3) and rows[1] == pytest.approx(rows[2], abs=3)


@pytest.mark.parametrize("gap", [math.nan, math.inf, 0.0, -1.0])
def test_what_has_no_place_on_the_axis_is_a_gap(gap):
    """Of five places the middle one is missing: two pieces with nothing between."""
    line = Line("a", range(5), [5.0, 4.0, gap, 2.0, 1.0])
    columns = where(draw_lines(Lines("t", [line], "step", is_log=True)), 0)[:, 1].unique()
    jumps = columns.diff()
    assert int((jumps > 50).sum()) == 1


@pytest.mark.parametrize("is_log", [True, False])
@pytest.mark.parametrize("y", [[], [math.nan], [0.0], [7.0], [1e-9, 1e9], [-3.0, 2.0], [5.0, 5.0]])
def test_anything_is_a_picture(y, is_log):
    image = draw_lines(Lines("t" * 300, [Line("n" * 300, range(len(y)), y)], "x", is_log))
    assert image.shape == (1, 400, 640, 3) and 0 <= float(image.min()) <= float(image.max()) <= 1
    assert not image.is_inference()


def test_labels_take_the_place_of_numbers_and_are_not_too_many():
    labels = [(i, f"{i}") for i in range(100)]
    lines = [Line("a", range(100), range(100))]
    with_labels = draw_lines(Lines("t", lines, "x", labels=labels))
    without = draw_lines(Lines("t", lines, "x"))
    assert not torch.equal(with_labels, without)
    below = (with_labels[0, 345:365] < 0.9).any(-1).any(0)
    assert 0.02 < float(below.float().mean()) < 0.4
