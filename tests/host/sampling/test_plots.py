# SPDX-License-Identifier: Apache-2.0
"""Courses of noise levels as a picture."""

import pytest
import torch

from graft.host.drawing.run_plot import COLORS
from graft.host.sampling.plots import plot_sigmas

SIGMAS = torch.tensor([80.0, 8.0, 0.8, 0.0])


def count(image, color):
    pixels = (image[0] * 255).round().to(torch.uint8)
    return int((pixels == torch.tensor(color, dtype=torch.uint8)).all(-1).sum())


def test_each_has_a_color_and_a_name():
    given = {"sigmas_1": SIGMAS, "sigmas_2": None, "sigmas_3": SIGMAS[1:]}
    image, said = plot_sigmas(given, ["", "", "short"], True)
    assert image.shape == (1, 400, 640, 3)
    assert count(image, COLORS[0]) > 100 and count(image, COLORS[1]) > 100
    assert count(image, COLORS[2]) == 0
    assert said.splitlines() == [
        "sigmas_1: 3 steps, sigma 80 to 0.8, then 0",
        "short: 2 steps, sigma 8 to 0.8, then 0",
    ]


def test_a_line_that_is_even_in_the_logarithm_is_straight():
    """From 80 by a tenth a step: on the logarithmic axis its points lie on one line, on the linear one they do not."""
    for is_log in (True, False):
        image, _ = plot_sigmas({"a": SIGMAS[:3]}, [], is_log)
        pixels = (image[0, 80:] * 255).round().to(torch.uint8)
        found = (pixels == torch.tensor(COLORS[0], dtype=torch.uint8)).all(-1).nonzero().float()
        y, x = found[:, 0], found[:, 1]
        fit = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution
        off = (y - fit[0] * x - fit[1]).abs().max()
        assert (float(off) < 4) == is_log


def test_what_cannot_be_drawn_is_refused_by_its_socket():
    with pytest.raises(ValueError, match="No SIGMAS is connected"):
        plot_sigmas({"sigmas_1": None}, [], True)
    with pytest.raises(ValueError, match="sigmas_2: SIGMAS has no level"):
        plot_sigmas({"sigmas_1": SIGMAS, "sigmas_2": torch.zeros(0)}, [], True)


def test_names_of_others_are_plain_text():
    _, said = plot_sigmas({"sigmas_1": SIGMAS}, ["a\x1b[2Jb"], False)
    assert "\x1b" not in said
