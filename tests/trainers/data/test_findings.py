# SPDX-License-Identifier: Apache-2.0
"""What is odd about single pictures, with numbers worked out by hand."""

import pytest
import torch
from PIL import Image

from graft.trainers.data import Dataset, Framing, Item, describe, join, read_folder
from graft.trainers.data.findings import (
    ALONE,
    CUT,
    NO_CAPTION,
    NO_TRIGGER,
    SCALED_UP,
    SHAPE,
    SILENT,
    SMALL,
    duplicates,
    of_order,
    of_size,
    of_texts,
    said_of_duplicates,
    shared_captions,
)


def dataset(*sizes, resolution=64, **settings):
    items = [Item(f"a cat {n}", path=f"{n}.png", size=size) for n, size in enumerate(sizes)]
    return Dataset(tuple(items), resolution=resolution, **settings)


def test_a_picture_of_the_right_size_has_nothing_odd():
    assert of_size(dataset((64, 64)), 0) == {}
    assert of_size(dataset((640, 480)), 0) == {}


def test_small_is_less_than_half_the_pixels():
    # Half of 64 x 64 is 2048: 64 x 32 has just that, 63 x 32 less.
    assert SMALL not in of_size(dataset((64, 32)), 0)
    assert "63 x 32 px" in of_size(dataset((63, 32)), 0)[SMALL]


def test_scaled_up_is_what_the_framing_scales_up():
    assert SCALED_UP not in of_size(dataset((40, 40)), 0)  # never without being asked
    framing = Framing(upscale=True)
    assert (
        "from 40 x 40 px to fill 64 x 64 px"
        in of_size(dataset((40, 40), framing=framing), 0)[SCALED_UP]
    )
    least = Framing(min_side=48)
    assert SCALED_UP in of_size(dataset((64, 40), framing=least), 0)


def test_cut_off_is_the_share_of_the_scaled_picture_that_is_lost():
    # Squares only: 128 x 64 becomes 64 x 64, half of it is lost. 70 x 64 loses 6 of 70 columns, 9 %.
    squares = Framing(buckets=False)
    found = of_size(dataset((128, 64), (70, 64), framing=squares), 0)
    assert found[CUT].startswith("50 %")
    assert CUT not in of_size(dataset((128, 64), (70, 64), framing=squares), 1)


def test_an_odd_shape_is_more_than_three_to_one():
    assert SHAPE not in of_size(dataset((300, 100), resolution=512), 0)
    assert of_size(dataset((310, 100), resolution=512), 0)[SHAPE] == "3.1 times as wide as high"
    assert of_size(dataset((100, 400), resolution=512), 0)[SHAPE] == "4.0 times as high as wide"


def test_the_report_names_them_with_the_same_words(tmp_path):
    for n, size in enumerate([(128, 64), (40, 40), (64, 64)]):
        Image.new("RGB", size, (80 * n, 9, 9)).save(tmp_path / f"{n}.png")
    items, _ = read_folder(tmp_path, "a cat")
    framing = Framing(buckets=False, upscale=True)
    lines = describe(Dataset(items, resolution=64, framing=framing)).splitlines()
    assert "too small for the resolution: 1.png (40 x 40)" in lines
    assert "scaled up to fill their buckets: 1.png (40 x 40)" in lines
    assert "cut off by more than 15 % to fit their buckets: 0.png (128 x 64)" in lines


def test_each_part_of_a_joined_dataset_has_its_own_resolution():
    joined = join([dataset((64, 64)), dataset((64, 64), resolution=128)])
    assert SMALL not in of_size(joined, 0)
    assert SMALL in of_size(joined, 1)


def test_texts_without_a_caption_or_the_trigger():
    one = dataset((64, 64), trigger="zork")
    assert of_texts(one, 0, ("a ZORK cat",)) == {}
    assert list(of_texts(one, 0, ("a zorks cat", ""))) == [NO_TRIGGER]
    assert list(of_texts(one, 0, ("",))) == [NO_CAPTION]
    assert of_texts(dataset((64, 64)), 0, ("a cat",)) == {}


def test_equal_captions_are_odd_only_where_not_all_are_equal():
    items = [Item(text, path=f"{n}.png", size=(64, 64)) for n, text in enumerate("aabc")]
    assert shared_captions(Dataset(items)) == dict.fromkeys((0, 1), "1 more with the same caption")
    assert shared_captions(Dataset(items[:2])) == {}  # one caption for all was meant
    assert shared_captions(Dataset([*items[2:], Item("", path="x", size=(64, 64))])) == {}


def test_pictures_that_count_more_or_not_at_all():
    items = [
        Item("a", path=f"{n}.png", size=size) for n, size in enumerate([(64, 64)] * 3 + [(64, 32)])
    ]
    items.append(Item("a", path="5.png", size=(64, 64), weight=0))
    found = [(index, kind) for index, kind, _ in of_order(Dataset(items, resolution=64))]
    assert found == [(3, ALONE), (4, SILENT)]


def test_duplicates_are_told_by_the_name_of_another(tmp_path):
    pixels = torch.rand(8, 8, 3)
    items = [Item("a", pixels=one) for one in (pixels, torch.rand(8, 8, 3), pixels, pixels)]
    groups = duplicates(Dataset(items))
    assert groups == [[0, 2, 3]]
    said = said_of_duplicates(groups, {n: f"{n}.png" for n in range(4)})
    assert said == {
        0: "the same picture as 2.png",
        2: "the same picture as 0.png",
        3: "the same picture as 0.png",
    }
    seen = []
    duplicates(Dataset(items), lambda item: seen.append(item) or "x")
    assert len(seen) == 4


@pytest.mark.parametrize("index", [-1, 1])
def test_there_is_no_such_picture(index):
    with pytest.raises(IndexError):
        of_size(dataset((64, 64)), index)
