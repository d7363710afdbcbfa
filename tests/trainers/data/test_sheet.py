# SPDX-License-Identifier: Apache-2.0
"""The contact sheet: pictures at their places, masks with an outline, and its limits."""

import pytest
import torch

from graft.trainers.data import Captioning, Dataset, Framing, Item, contact_sheet
from graft.trainers.data.sheet import GAP_PX, LINE_PX, MARGIN_PX, OUTLINE, SIDE_PX

TOP = MARGIN_PX + 2 * LINE_PX


def plain(colour, size=(64, 64), **values):
    pixels = torch.tensor(colour, dtype=torch.float32).expand(*size, 3)
    return Item("a red picture", pixels=pixels, **values)


def cell(sheet, column, row):
    x = MARGIN_PX + column * (SIDE_PX + GAP_PX)
    y = TOP + row * (SIDE_PX + 5 * LINE_PX + GAP_PX)
    return sheet[0, y : y + SIDE_PX, x : x + SIDE_PX]


def test_pictures_are_where_they_belong():
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]
    sheet = contact_sheet(Dataset([plain(c) for c in colours], resolution=64), columns=3)
    assert sheet.dtype == torch.float32 and 0 <= sheet.min() and sheet.max() <= 1
    for n, colour in enumerate(colours):
        expected = torch.tensor(colour, dtype=torch.float32).expand(SIDE_PX, SIDE_PX, 3)
        assert torch.equal(cell(sheet, n % 3, n // 3), expected)
    # Below a picture is text, and between pictures is none.
    below = sheet[
        0, TOP + SIDE_PX + 4 : TOP + SIDE_PX + 4 + LINE_PX, MARGIN_PX : MARGIN_PX + SIDE_PX
    ]
    assert (below < 0.5).any()
    gap = sheet[0, TOP:, MARGIN_PX + SIDE_PX + 2 : MARGIN_PX + SIDE_PX + GAP_PX - 2]
    assert bool((gap == 1).all())


def test_a_wide_picture_keeps_its_shape():
    sheet = contact_sheet(
        Dataset([plain((1, 0, 0), (64, 128))], resolution=64, framing=Framing(step=8))
    )
    red = (cell(sheet, 0, 0) == torch.tensor([1.0, 0, 0])).all(2)
    assert red.any(0).sum() == SIDE_PX and red.any(1).sum() == SIDE_PX // 2


def test_a_mask_has_its_outline_and_flips_with_its_picture():
    mask = torch.zeros(64, 64)
    mask[:, :16] = 1
    item = plain((0, 0, 0), mask=mask)
    dataset = Dataset([item], resolution=64, framing=Framing(flip=True))
    edge = torch.tensor(OUTLINE) / 255

    def outlined(view):
        drawn = (cell(contact_sheet(dataset, view=view), 0, 0) - edge).abs().amax(2) < 0.01
        assert bool((drawn.all(0) == drawn.any(0)).all()), "the line runs from top to bottom"
        return drawn[0].nonzero().flatten().tolist()

    # A quarter of 192 px is 48: the line's two pixels are the last ones inside.
    assert outlined(0) == [46, 47]
    assert outlined(1) == [144, 145]
    assert outlined(2) == outlined(0), "views are counted round"
    whole = Dataset([plain((0, 0, 0), mask=torch.ones(64, 64))], resolution=64)
    assert not cell(contact_sheet(whole), 0, 0).any()


def test_first_and_count():
    dataset = Dataset([plain((n / 10, 0, 0)) for n in range(10)], resolution=64)
    sheet = contact_sheet(dataset, count=2, first=4)
    assert float(cell(sheet, 0, 0)[5, 5, 0]) == pytest.approx(0.4, abs=0.01)
    assert float(cell(sheet, 1, 0)[5, 5, 0]) == pytest.approx(0.5, abs=0.01)
    assert contact_sheet(dataset, count=50, first=9).shape == contact_sheet(dataset, count=1).shape
    for values in ({"first": 10}, {"count": 0}, {"columns": 0}, {"view": -1}, {"count": 1000}):
        with pytest.raises(ValueError, match="the dataset has 10 pictures"):
            contact_sheet(dataset, **values)


def test_captions_of_any_length_and_none_are_drawn():
    items = [
        Item(caption, pixels=torch.rand(32, 48, 3), label=0, repeats=3, weight=0.5)
        for caption in ("", "word " * 100, "x" * 3000, "\u732b\u306e\u5199\u771f", "a, b, c, d")
    ]
    dataset = Dataset(items, resolution=32, captioning=Captioning(shuffle=True), labels=("cat",))
    assert contact_sheet(dataset).shape[0] == 1
