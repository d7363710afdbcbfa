# SPDX-License-Identifier: Apache-2.0
"""Small pictures: of every kind that is read, upright, with the shape kept, and nothing but pixels in the file."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

from graft.trainers.data import ImageError, Item
from graft.trainers.data.images import check_header, check_image
from graft.trainers.data.strict import strict
from graft.trainers.data.thumbnails import read_small, thumbnail


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("size", "small"),
    [((400, 200), (128, 64)), ((200, 400), (64, 128)), ((20, 10), (20, 10)), ((2000, 8), (128, 1))],
)
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_the_shape_is_kept_and_nothing_is_scaled_up(tmp_path, size, small, kind):
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", size, "orange").save(path)
    made = opened(thumbnail(Item("a", path=str(path)), 128))
    assert made.format == "JPEG"
    assert made.size == small
    red, green, blue = made.convert("RGB").getpixel((0, 0))
    assert abs(red - 255) < 6 and abs(green - 165) < 6 and blue < 12  # orange is #ffa500


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_white_stays_white_in_every_mode(tmp_path, mode):
    white = {"I;16": 65535, "1": 1, "CMYK": (0, 0, 0, 0), "LA": (255, 9), "RGBA": (0, 0, 0, 0)}
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    image = Image.new(mode, (300, 150), white.get(mode, 255))
    if mode == "P":
        image = Image.new("RGB", (300, 150), "white").convert("P")
    image.save(path)
    small = read_small(path, 64)
    assert small.shape == (32, 64, 3) and small.dtype == np.uint8
    assert small.min() == 255  # transparency lies on white


def test_a_turned_photograph_is_upright(tmp_path):
    image = Image.new("RGB", (200, 100), "blue")
    image.paste("red", (0, 0, 100, 100))
    for name in ("a.jpg", "a.tif"):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise: what is left comes to the top
        image.save(tmp_path / name, exif=exif)
        small = read_small(tmp_path / name, 100)
        assert small.shape == (100, 50, 3)
        assert small[10, 25, 0] > 200 and small[90, 25, 2] > 200


def test_a_thumbnail_keeps_no_metadata(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "a secret")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    assert b"secret" not in thumbnail(Item("a", path=str(tmp_path / "a.png")), 32)


def test_pixels_of_the_graph_have_thumbnails():
    pixels = torch.zeros(40, 80, 3)
    pixels[..., 1] = 1
    made = opened(thumbnail(Item("a", pixels=pixels), 32))
    assert made.size == (32, 16)
    assert made.getpixel((4, 4))[1] > 245


def test_a_damaged_picture_has_none(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert check_header(path).width == 64  # its header is whole
    for reads in (check_image, lambda path: thumbnail(Item("a", path=str(path)), 32)):
        with pytest.raises(ImageError, match="damaged or cut short"):
            reads(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_a_header_says_what_decoding_says(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.new(mode, (40, 30)).save(path)
    assert check_header(path) == check_image(path)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_turned_png_is_known_by_its_chunks(tmp_path, where):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    if where == "behind":  # the chunk may stand behind the pixels
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        rest = data[:start] + data[end:]
        path.write_bytes(rest[:-12] + data[start:end] + rest[-12:])
    assert check_header(path) == check_image(path)
    assert (check_header(path).width, check_header(path).height) == (30, 40)


def test_what_others_set_in_pillow_comes_back_after_the_last_thread(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with strict():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with strict():
        thread.start()
        assert inside.wait(10)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # the other thread decodes still
    leave.set()
    thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
