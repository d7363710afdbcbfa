# SPDX-License-Identifier: Apache-2.0
"""A table drawn as colours: every cell has its own, empty ones have none."""

import pytest
import torch

from graft.host.drawing.heat_map import Table, heat_map, shade


def test_the_colours_go_from_dark_to_light():
    lightness = [sum(shade(i / 20)) for i in range(21)]
    assert lightness == sorted(lightness) and len(set(lightness)) == 21
    assert shade(-1) == shade(0) and shade(2) == shade(1)


def test_each_cell_has_the_colour_of_its_value_and_nan_has_none():
    values = [[0.0, 0.5], [float("nan"), 1.0]]
    image = heat_map(Table("title", ["one", "two"], ["a", "b"], values, 0.0, 1.0))
    assert image.dtype == torch.float32 and image.shape[0] == 1 and image.shape[3] == 3
    colors = {tuple((pixel * 255).round().int().tolist()) for pixel in image.reshape(-1, 3)}
    assert {shade(0.0), shade(0.5), shade(1.0)} <= colors
    filled = (image[0, 64 + 25 : 64 + 46, -130:-80] == 1).all(-1).float().mean()
    assert float(filled) == 1.0


@pytest.mark.parametrize("count", [1, 40])
def test_it_is_as_large_as_the_table_needs(count):
    rows = [f"output_blocks.{i}.transformer" for i in range(count)]
    image = heat_map(Table("t", rows, ["x"], [[0.5]] * count, 0.0, 1.0))
    assert image.shape[1] == 64 + 24 * count + 12 and image.shape[2] > 8 * len(rows[-1])
