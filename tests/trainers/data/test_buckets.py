# SPDX-License-Identifier: Apache-2.0
"""Buckets: the size against brute force, the scaling against Pillow, the conditioning by hand."""

import itertools
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from graft.trainers.data.buckets import fit, random_crop, size_for, step_for
from graft.trainers.data.images import image_size, read_image


def pictures(count, seed, low=16, high=3000):
    draw = random.Random(seed)
    for _ in range(count):
        resolution = draw.choice((64, 128, 256, 512, 768, 1024))
        if draw.random() < 0.5:
            yield draw.randint(low, high), draw.randint(low, high), resolution
        else:  # small, where the step is 8 px and the bounds bite
            yield draw.randint(low, 300), draw.randint(low, 300), resolution


def waste(w, h, width, height, resolution):
    """Pixels cut off after scaling to cover, plus pixels of the allowed area not used."""
    scale = max(Fraction(w, width), Fraction(h, height))
    return (scale * width) * (scale * height) - w * h + resolution**2 - w * h


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((1024, 1024, 1024), (1024, 1024)),
        ((512, 512, 512), (512, 512)),
        ((64, 64, 64), (64, 64)),
        # SDXL's own buckets (Podell et al. 2023, appendix I) for a camera's and a screen's aspect.
        ((4000, 3000, 1024), (1152, 896)),
        ((6000, 4000, 1024), (1216, 832)),
        ((1080, 1920, 1024), (768, 1344)),
        # 2:1 fits without any cropping although a taller one would use more of the area.
        ((2048, 1024, 1024), (1408, 704)),
        # Not scaled up: the largest multiples of the step that lie inside.
        ((300, 300, 1024), (256, 256)),
        ((300, 200, 1024), (296, 200)),
        ((16, 16, 64), (16, 16)),
        ((40, 17, 512), (40, 16)),
        # The step follows the trained size: 64 px photographs keep their aspect.
        ((640, 427, 64), (72, 48)),
    ],
)
def test_sizes_by_hand(picture, expected):
    assert size_for(*picture) == expected


def test_size_wastes_the_fewest_pixels_of_all_allowed_sizes():
    """The search looks at two heights a width; brute force looks at all."""
    for width, height, resolution in pictures(60, seed=1, high=1500):
        step = step_for(width, height, resolution)
        allowed = [
            (w, h)
            for w in range(step, width + 1, step)
            for h in range(step, height + 1, step)
            if w * h <= resolution**2
        ]
        if len(allowed) > 6000:
            continue
        least = min(waste(*size, width, height, resolution) for size in allowed)
        chosen = size_for(width, height, resolution)
        assert chosen in allowed
        assert waste(*chosen, width, height, resolution) == least, (width, height, resolution)


def test_sizes_divide_stay_inside_and_below_the_area():
    for width, height, resolution in pictures(1500, seed=2):
        w, h = size_for(width, height, resolution)
        step = step_for(width, height, resolution)
        assert w % step == h % step == 0 and min(w, h) >= step
        assert w <= width and h <= height
        assert w * h <= resolution**2


def test_less_than_one_step_of_the_other_side_is_cropped():
    """Let c be cut off the scaled width, and a = width / height of the picture.

    Taking one step off the bucket's height changes 2wh - (scaled area) by
    (2wc + c^2) / a - 2w step where the width then decides, and by step (2c - a step) where not.
    Both are positive for c >= a step, so the best size has c < a step; likewise for the height.
    Only a side that is one step already cannot be lowered.
    """
    for width, height, resolution in pictures(1500, seed=3):
        w, h = size_for(width, height, resolution)
        step = step_for(width, height, resolution)
        scale = max(Fraction(w, width), Fraction(h, height))
        aspect = Fraction(width, height)
        if h > step:
            assert scale * width - w < aspect * step, (width, height, resolution)
        if w > step:
            assert scale * height - h < step / aspect, (width, height, resolution)


def test_turning_the_picture_turns_the_size():
    for width, height, resolution in pictures(500, seed=4):
        w, h = size_for(width, height, resolution)
        assert size_for(height, width, resolution) == (h, w)


def test_area_grows_with_resolution_and_with_the_picture():
    draw = random.Random(5)
    for _ in range(60):
        width, height = draw.randint(300, 3000), draw.randint(300, 3000)
        areas = [np.prod(size_for(width, height, r)) for r in range(256, 1100, 93)]
        assert areas == sorted(areas)
        areas = [np.prod(size_for(n * width, n * height, 1024)) for n in (1, 2, 3, 4)]
        assert areas == sorted(areas)


@pytest.mark.parametrize("picture", [(5, 5, 64), (7, 100, 512), (100_000, 3, 1024)])
def test_smaller_than_a_step_is_the_one_case_of_scaling_up(picture):
    w, h = size_for(*picture)
    assert min(w, h) == 8 and max(w, h) <= max(8, *picture[:2]) and w * h <= picture[2] ** 2


@pytest.mark.parametrize(
    ("picture", "message"),
    [((0, 5, 64), "0 x 5 px"), ((512, 512, 7), "resolution is 7 px, the least is 8")],
)
def test_bad_sizes(picture, message):
    with pytest.raises(ValueError, match=message):
        size_for(*picture)


def test_a_picture_of_the_right_size_keeps_every_bit():
    pixels = torch.rand(64, 128, 3)
    fitted = fit(pixels, (128, 64))
    assert torch.equal(fitted.pixels, pixels)
    assert (fitted.original, fitted.crop, fitted.target) == ((64, 128), (0, 0), (64, 128))
    fitted.pixels.zero_()
    assert pixels.any(), "the result is a tensor of its own"


def test_cropping_alone_keeps_every_bit():
    pixels = torch.rand(70, 128, 3)
    fitted = fit(pixels, (128, 64))
    assert torch.equal(fitted.pixels, pixels[3:67])
    assert fitted.crop == (3, 0) and fitted.original == (70, 128)


def test_crop_and_original_as_diffusers_counts_them():
    """1000 x 500 to 64 x 64: scaled to 128 x 64, so 32 columns are cut off on the left."""
    fitted = fit(torch.rand(500, 1000, 3), (64, 64))
    assert (fitted.original, fitted.crop, fitted.target) == ((500, 1000), (0, 32), (64, 64))
    fitted = fit(torch.rand(1000, 500, 3), (64, 64))
    assert fitted.crop == (32, 0)


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (56, 40)])
def test_scaling_equals_pillows_bicubic(size):
    pixels = torch.rand(211, 317, 3, generator=torch.Generator().manual_seed(1))
    fitted = fit(pixels, size)
    scale = max(size[0] / 317, size[1] / 211)
    whole = (round(317 * scale), round(211 * scale))
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, c].numpy()).resize(whole, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    top, left = fitted.crop
    expected = np.stack(planes, 2)[top : top + size[1], left : left + size[0]].clip(0, 1)
    assert fitted.pixels.shape == (size[1], size[0], 3)
    assert np.abs(fitted.pixels.numpy() - expected).max() <= 1e-5


def test_scaling_is_antialiased_and_stays_in_range():
    """Stripes of one pixel become their mean; a plain scaling by 1/8 would give stripes or one colour."""
    pixels = torch.zeros(512, 512, 3)
    pixels[:, ::2] = 1
    inner = fit(pixels, (64, 64)).pixels[:, 4:-4]
    assert (inner - 0.5).abs().max() <= 0.01
    edge = torch.zeros(512, 512, 3)
    edge[:, 251:] = 1
    scaled = fit(edge, (64, 64)).pixels
    assert scaled.min() == 0 and scaled.max() == 1  # bicubic would overshoot


def test_every_size_is_covered():
    for width, height, resolution in pictures(40, seed=6, high=400):
        w, h = size_for(width, height, resolution)
        fitted = fit(torch.full((height, width, 3), 0.25), (w, h))
        assert fitted.pixels.shape == (h, w, 3) and fitted.pixels.is_contiguous()
        assert (fitted.pixels - 0.25).abs().max() <= 1e-5
        assert min(fitted.crop) == 0 or min(w / width, h / height) == max(w / width, h / height)


def test_fit_in_inference_mode_gives_normal_fp32():
    with torch.inference_mode():
        fitted = fit(torch.rand(100, 100, 3, dtype=torch.float64), (64, 64))
    assert not fitted.pixels.is_inference() and fitted.pixels.dtype == torch.float32


def test_fit_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\[height, width, 3\]"):
        fit(torch.rand(1, 64, 64, 3), (64, 64))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_real_photographs(name):
    """640 x 427 photographs at their bucket are, on the mean, Pillow's 8-bit scaling.

    Its two passes round and clip at 8 bits, so that single pixels at sharp edges differ more.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    path = Path(datasets.__file__).parent / "images" / name
    fitted = fit(read_image(path), size_for(*image_size(path), 512))
    assert fitted.target == (384, 576) and fitted.original == (427, 640)
    assert fitted.crop == (0, 0)  # 640 x 427 scales to 576 x 384.3
    with Image.open(path) as image:
        scaled = np.asarray(image.resize((576, 384), Image.Resampling.BICUBIC))
    assert np.abs(fitted.pixels.numpy() - scaled / 255).mean() <= 0.5 / 255


def ramp(height, width):
    """A picture whose first two channels are the place of a pixel's centre, down and right, in 0..1."""
    down = (torch.arange(height) + 0.5) / height
    right = (torch.arange(width) + 0.5) / width
    return torch.stack([*torch.meshgrid(down, right, indexing="ij"), torch.zeros(height, width)], 2)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_random_crop_shows_what_its_coordinates_say(number):
    """In the scaled picture the pixel (i, j) of the crop is at (top + i, left + j): the ramp has its place there."""
    fitted = random_crop(ramp(128, 256), (96, 64), 5, number)
    (top, left), (height, width) = fitted.crop, (64, 96)
    slope = float(fitted.pixels[48, 48, 0] - fitted.pixels[16, 48, 0]) / 32
    scaled = 1 / slope  # height of the scaled picture in pixels
    middle = fitted.pixels[32, 48]
    assert float(middle[0]) == pytest.approx((top + 32.5) / scaled, abs=0.01)
    assert float(middle[1]) == pytest.approx((left + 48.5) / (2 * scaled), abs=0.01)
    assert 64 - 1 <= scaled <= 64 / 0.75 + 1
    assert 0 <= top <= scaled - height + 1 and 0 <= left <= 2 * scaled - width + 1
    assert fitted.original == (128, 256) and fitted.target == (height, width)


def test_random_crops_are_the_same_ones_each_time_and_differ_from_each_other():
    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    crops = [random_crop(pixels, (64, 64), 0, number) for number in range(8)]
    assert torch.equal(crops[0].pixels, pixels) and crops[0].crop == (0, 0)
    for one, other in itertools.combinations(crops, 2):
        assert not torch.equal(one.pixels, other.pixels)
    again = random_crop(pixels, (64, 64), 0, 3)
    assert torch.equal(again.pixels, crops[3].pixels) and again.crop == crops[3].crop
    assert not torch.equal(random_crop(pixels, (64, 64), 1, 3).pixels, crops[3].pixels)
