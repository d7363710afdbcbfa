# SPDX-License-Identifier: Apache-2.0
"""Buckets by option, and views: crops and mirror images with their size conditioning."""

import itertools

import pytest
import torch

from graft.trainers.data import Dataset, Framing, Item, random_crop, size_for
from graft.trainers.data.buckets import fit

# SDXL's multi-aspect sizes, Podell et al. 2023, appendix I (arXiv 2307.01952), at or below 1024^2 px.
SDXL = """512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344
768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024 1024x960 1088x960 1088x896 1152x896
1152x832 1216x832 1280x768 1344x768 1408x704 1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512
1984x512 2048x512"""


def ramp(height, width):
    """A picture whose first two channels are the place of a pixel's centre, down and right, in 0..1."""
    down = (torch.arange(height) + 0.5) / height
    right = (torch.arange(width) + 0.5) / width
    return torch.stack([*torch.meshgrid(down, right, indexing="ij"), torch.zeros(height, width)], 2)


@pytest.mark.parametrize("size", SDXL.split())
@pytest.mark.parametrize("shrink", [1, 4])
def test_a_picture_of_an_sdxl_shape_has_that_bucket(size, shrink):
    width, height = map(int, size.split("x"))
    how = Framing(upscale=shrink > 1, step=64)
    assert how.size(width // shrink, height // shrink, 1024) == (width, height)


# What sd-scripts makes of --resolution 512 --min_bucket_reso 256 --max_bucket_reso 1024 --bucket_reso_steps 64:
# for each width the largest height whose product with it is at most 512^2, and both turned.
KOHYA = """256x1024 320x704 320x768 384x640 448x576 512x512 576x448 640x384 704x320 768x320 832x256 896x256 960x256
1024x256 256x832 256x896 256x960"""


@pytest.mark.parametrize("size", KOHYA.split())
def test_a_picture_of_a_kohya_bucket_has_that_bucket(size):
    width, height = map(int, size.split("x"))
    how = Framing(step=64, min_side=256, max_side=1024, upscale=True)
    for factor in (1, 2, 0.25):
        picture = (round(factor * width), round(factor * height))
        assert how.size(*picture, 512) == (width, height)


def test_upscaling_gives_the_bucket_of_a_large_picture_of_the_same_shape():
    for width, height in itertools.product((17, 100, 331, 640), (23, 64, 427)):
        large = size_for(width * 400, height * 400, 512)
        assert Framing(upscale=True).size(width, height, 512) == large
        assert Framing().size(width, height, 512) == size_for(width, height, 512)


def allowed(step, least, most, resolution):
    sides = range(step, resolution * resolution // step + 1, step)
    return [
        (w, h)
        for w in sides
        for h in sides
        if least <= min(w, h) and max(w, h) <= most and w * h <= resolution**2
    ]


@pytest.mark.parametrize("picture", [(4000, 700), (1500, 1500), (900, 2000), (2000, 2100)])
def test_sides_and_step_against_brute_force(picture):
    """Of all allowed sizes the one that wastes the fewest pixels, as the default search is tested."""
    step, least, most, resolution = 32, 256, 640, 512
    width, height = picture

    def waste(size):
        w, h = size
        scale = max(w / width, h / height)
        return scale * width * scale * height - w * h + resolution**2 - w * h

    chosen = Framing(step=step, min_side=least, max_side=most).size(*picture, resolution)
    sizes = allowed(step, least, most, resolution)
    assert chosen in sizes
    assert waste(chosen) == pytest.approx(min(map(waste, sizes)))


def test_without_buckets_all_are_squares():
    how = Framing(buckets=False)
    assert how.size(2000, 1000, 512) == (512, 512)
    assert how.size(400, 300, 512) == (256, 256)
    assert Framing(buckets=False, upscale=True).size(400, 300, 512) == (512, 512)
    assert how.size(100, 300, 512) == (96, 96)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 12}, "multiple of 8"),
        ({"min_side": 512, "max_side": 256}, "not below the shortest"),
        ({"outside": 2.0}, "outside is 2.0"),
        ({"crop": "left"}, "Unknown crop 'left'"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises(ValueError, match=message):
        Framing(**values)


def test_sides_without_a_size_are_named():
    with pytest.raises(ValueError, match="between 600 and 512 px at resolution 512"):
        Framing(min_side=600).size(800, 800, 512)


def test_default_views_are_the_random_crops_bit_for_bit():
    pixels = torch.rand(100, 150, 3, generator=torch.Generator().manual_seed(0))
    dataset = Dataset([Item("a", pixels=pixels)] * 2, resolution=64, crops=3)
    assert dataset.views(1) == 3 and dataset.size(1) == size_for(150, 100, 64)
    for number in range(3):
        view, crop = dataset.view(1, number), random_crop(pixels, dataset.size(1), 1, number)
        assert torch.equal(view.pixels, crop.pixels)
        assert (view.crop, view.original, view.mask) == (crop.crop, crop.original, None)


def test_a_flipped_view_is_the_mirror_image_and_its_crop_is_counted_there():
    """Pixel (i, j) of a view is at (top + i, left + j) of the scaled picture, flipped where the view is.

    The ramp tells each pixel's place in the picture before it was flipped; in a scaled picture of
    width W the flipped one of column x is W - x.
    """
    dataset = Dataset(
        [Item("a", pixels=ramp(128, 256))], resolution=64, crops=4, framing=Framing(flip=True)
    )
    width, height = dataset.size(0)
    assert dataset.views(0) == 8
    for number in range(4):
        plain, flipped = dataset.view(0, number), dataset.view(0, number + 4)
        assert torch.equal(flipped.pixels, plain.pixels.flip(1))
        slope = float(plain.pixels[20, 60, 1] - plain.pixels[20, 20, 1]) / 40
        scaled_width = 1 / slope
        for view, mirrored in ((plain, False), (flipped, True)):
            top, left = view.crop
            middle = view.pixels[height // 2, width // 2]
            column = left + width // 2 + 0.5
            right = (scaled_width - column if mirrored else column) / scaled_width
            down = (top + height // 2 + 0.5) / (scaled_width / 2)
            assert float(middle[1]) == pytest.approx(right, abs=0.01)
            assert float(middle[0]) == pytest.approx(down, abs=0.01)
        assert view.size == (width, height) and view.original == (128, 256)


def test_random_crops_of_the_whole_share_only_move():
    framing = Framing(crop="random", smallest_crop=1.0, buckets=False)
    dataset = Dataset([Item("a", pixels=ramp(64, 256))], resolution=64, crops=6, framing=framing)
    lefts = [dataset.view(0, number).crop for number in range(6)]
    assert {top for top, _ in lefts} == {0} and len({left for _, left in lefts}) >= 5
    for number, (_, left) in enumerate(lefts):
        assert float(dataset.view(0, number).pixels[0, 0, 1]) == pytest.approx((left + 0.5) / 256)


def test_masks_move_with_the_picture():
    """A mask that is the picture's own left-to-right ramp stays equal to it in every view."""
    picture = ramp(96, 160)
    item = Item("a", pixels=picture, mask=picture[:, :, 1].clone())
    framing = Framing(flip=True, crop="random", step=8)
    dataset = Dataset([item], resolution=64, crops=3, framing=framing)
    for number in range(dataset.views(0)):
        view = dataset.view(0, number)
        assert view.mask.shape == view.pixels.shape[:2]
        inside = (slice(None), slice(3, -3))  # bicubic and bilinear differ at the picture's edge
        assert (view.mask - view.pixels[:, :, 1])[inside].abs().max() <= 2e-3
    outside = Dataset([item], resolution=64, framing=Framing(outside=0.25, step=8))
    plain = Dataset([item], resolution=64, framing=Framing(step=8))
    expected = 0.25 + 0.75 * plain.view(0, 0).mask
    assert torch.allclose(outside.view(0, 0).mask, expected, atol=1e-6)


def test_a_mask_without_scaling_keeps_every_bit():
    pixels, mask = torch.rand(64, 80, 3), torch.rand(64, 80)
    fitted = fit(pixels, (64, 64), mask=mask, flip=True)
    assert torch.equal(fitted.mask, mask[:, 8:72].flip(1))
    assert torch.equal(fitted.pixels, pixels[:, 8:72].flip(1)) and fitted.crop == (0, 8)
    with pytest.raises(ValueError, match="the mask is"):
        fit(pixels, (64, 64), mask=mask[1:])


def test_views_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        item = Item("a", pixels=torch.rand(96, 64, 3), mask=torch.rand(96, 64))
        dataset = Dataset([item], resolution=64, framing=Framing(outside=0.5, flip=True))
        for view in (dataset.view(0, 0), dataset.view(0, 1)):
            assert not view.pixels.is_inference() and not view.mask.is_inference()
        assert not item.read_mask().is_inference()


def test_a_mask_belongs_to_its_item():
    mask = torch.rand(96, 64)
    item = Item("a", pixels=torch.rand(96, 64, 3), mask=mask)
    before, digest = mask.clone(), item.mask_digest()
    mask.zero_()
    item.read_mask().zero_()
    assert torch.equal(item.read_mask(), before) and item.mask_digest() == digest


def test_several_views_are_those_one_by_one(monkeypatch):
    item = Item("a", pixels=torch.rand(96, 64, 3), mask=torch.rand(96, 64))
    dataset = Dataset([item], resolution=64, crops=3, framing=Framing(flip=True))
    read = []
    monkeypatch.setattr(Item, "read", lambda self: read.append(1) or self.pixels.clone())
    several = list(dataset.some_views(0, range(6)))
    assert len(read) == 1
    for number, view in enumerate(several):
        single = dataset.view(0, number)
        assert torch.equal(view.pixels, single.pixels) and torch.equal(view.mask, single.mask)
        assert view.crop == single.crop


def test_keys_tell_views_apart_and_nothing_else():
    item = Item("a", pixels=torch.rand(96, 64, 3))

    def keys(item=item, **settings):
        dataset = Dataset([item], **{"resolution": 64, "crops": 2, **settings})
        return tuple(dataset.view_key(0, number) for number in range(dataset.views(0)))

    assert keys() == keys(trigger="sks") == keys(item=Item("b", pixels=torch.rand(96, 64, 3)))
    assert keys() == keys(framing=Framing(flip=True))[:2]
    assert len(set(keys(framing=Framing(flip=True)))) == 4
    masked = Item("a", pixels=item.pixels, mask=torch.rand(96, 64))
    others = [
        keys(resolution=48)[0],
        keys(framing=Framing(smallest_crop=0.5))[1],
        keys(framing=Framing(crop="random"))[0],
        keys(item=masked)[0],
        keys(item=masked, framing=Framing(outside=0.1))[0],
    ]
    assert len({*keys(), *others}) == 2 + len(others)
    with pytest.raises(ValueError, match="view 2 of a picture with 2 views"):
        Dataset([item], resolution=64, crops=2).view_key(0, 2)
