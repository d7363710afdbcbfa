# SPDX-License-Identifier: Apache-2.0
"""Drawings that graft-mini did not draw get another color, and keep the rest; the measurement in small and in full."""

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def wires():
    from tests.host import inprocess

    inprocess.start()
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        return load_mini()


def ways(*names):
    from graft.benchmarks.editing import WAYS

    return [way for way in WAYS if way.name in names]


def test_drawings_are_what_they_are_said_to_be(comfy):
    from graft.benchmarks.editing import drawings, read

    drawn = drawings(16)
    found = read(drawn.pixels, drawn.pixels, drawn)
    assert found["old color"] == found["background"] == 1 and found["shape"] >= 0.9
    assert found["new color"] == 0 and found["change inside"] == found["outside"] == 0
    for new, (_, color, back) in zip(drawn.wanted, drawn.shown, strict=True):
        assert new not in (color, back)
    assert 0.05 < float(drawn.inside.mean()) < 0.6


def test_a_color_is_edited_and_the_rest_stays(wires):
    """In twelve steps, five drawings."""
    from graft.benchmarks.editing import measure

    names = "not edited", "where the text changes most"
    table = measure(wires, 5, ways(*names), steps=12)
    assert table["not edited"]["change inside"] < 1e-3 > table["not edited"]["outside"]
    edited = table["where the text changes most"]
    assert edited["new color"] >= 0.8 and edited["old color"] == 0
    assert edited["background"] >= 0.8
    assert edited["outside"] < edited["change inside"] / 4


@pytest.mark.slow
def test_the_whole_table(wires):
    from graft.benchmarks.editing import WAYS, measure

    table = measure(wires, 32, WAYS)
    assert table["not edited"]["change inside"] < 1e-3
    for way in WAYS[1:]:
        row = table[way.name]
        assert row["new color"] >= 0.7, way.name
        assert row["background"] >= 0.8, way.name
        assert row["outside"] < row["change inside"] / 4, way.name
