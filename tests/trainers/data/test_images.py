# SPDX-License-Identifier: Apache-2.0
"""Picture files: what is converted is right to the value, what is refused is named."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features

from graft.trainers.data import images
from graft.trainers.data.images import (
    EXTENSIONS,
    ImageError,
    check_image,
    image_size,
    read_image,
    rgb_pixels,
)

LOSSLESS = ("png", "tif", "bmp")


def noise(height=20, width=32, channels=3, dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed)
    return values.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def unit(array):
    return torch.from_numpy(np.array(array)).float() / 255


def png(width, height, depth, colour, data=b""):
    """A PNG by hand: Pillow cannot write 16-bit colour, nor lie about a size."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def cmyk_profile(node):
    """A CMYK ICC profile of one 2x2x2x2 table: ``node(c, m, y, k)`` of 0/1 inks gives Lab bytes."""
    nodes = [node(*(i >> s & 1 for s in (3, 2, 1, 0))) for i in range(16)]
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4
    table += b"".join(bytes(lab) for lab in nodes) + ramp * 3
    table += bytes(-len(table) % 4)
    size = 128 + 4 + 12 + len(table)
    header = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s28x", 2000, 1, 1, 0, 0, 0, b"acsp")
    header += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("extension", LOSSLESS)
def test_eight_bit_rgb_is_exact(tmp_path, extension):
    array = noise()
    path = tmp_path / f"a.{extension.upper()}"
    Image.fromarray(array).save(path)
    pixels = read_image(path)
    assert pixels.dtype == torch.float32 and pixels.shape == (20, 32, 3)
    assert torch.equal(pixels, unit(array))
    assert image_size(path) == (32, 20) and check_image(path).warning == ""


def test_pixels_are_normal_tensors_inside_inference_mode(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with torch.inference_mode():
        pixels = read_image(tmp_path / "a.png")
    assert not pixels.is_inference()
    pixels.mul_(1)


def exif_store(upright, orientation):
    """EXIF 2.3, tag 274: which side of the visible picture the stored row 0 and column 0 are."""
    sides = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }  # fmt: skip
    row0, column0 = sides[orientation]
    height, width = upright.shape[:2]
    ys, xs = np.arange(height), np.arange(width)
    ys = ys[::-1] if "bottom" in (row0, column0) else ys
    xs = xs[::-1] if "right" in (row0, column0) else xs
    stored = upright[ys][:, xs]
    return stored if row0 in ("top", "bottom") else stored.swapaxes(0, 1)


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_bit_for_bit(tmp_path, orientation, extension):
    upright = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    stored = Image.fromarray(np.ascontiguousarray(exif_store(upright, orientation)))
    stored.save(path, exif=exif, **({"lossless": True} if extension == "webp" else {}))
    assert torch.equal(read_image(path), unit(upright))
    assert image_size(path) == (32, 20)
    check = check_image(path)
    assert (check.width, check.height) == (32, 20)


def test_exif_orientation_of_16_bit_grey_and_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = noise(channels=1, dtype=np.uint16)[:, :, 0]
    stored = Image.fromarray(np.ascontiguousarray(exif_store(upright, 6)))
    stored.save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert torch.equal(pixels[:, :, 1], torch.from_numpy(upright.astype(np.float32) / 65535))
    Image.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (24, 40)
    assert read_image(tmp_path / "a.jpg").shape == (40, 24, 3)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_nonsense_orientation_is_upright(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    array = noise()
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), unit(array))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_ramp_keeps_its_precision(tmp_path, extension):
    ramp = np.linspace(0, 65535, 16 * 64).astype(np.uint16).reshape(16, 64)
    Image.fromarray(ramp).save(tmp_path / f"a.{extension}")
    pixels = read_image(tmp_path / f"a.{extension}")
    expected = torch.linspace(0, 1, 16 * 64, dtype=torch.float64).reshape(16, 64)
    assert (pixels - expected[:, :, None]).abs().max() <= 1.01 / 65535  # the ramp is floored
    assert len(pixels.unique()) == 1024


def test_16_bit_colour_png(tmp_path):
    array = noise(dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    (tmp_path / "a.png").write_bytes(png(32, 20, 16, 2, rows))
    expected = torch.from_numpy(array.astype(np.float64) / 65535)
    assert (read_image(tmp_path / "a.png") - expected).abs().max() <= 1 / 255


def test_16_bit_tiff_colour_and_white_is_zero(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = noise(dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    expected = torch.from_numpy(array.astype(np.float64) / 65535)
    assert (read_image(tmp_path / "a.tif") - expected).abs().max() <= 1 / 255
    tifffile.imwrite(tmp_path / "b.tif", array[:, :, 0], photometric="miniswhite")
    assert (read_image(tmp_path / "b.tif") - (1 - expected[:, :, :1])).abs().max() <= 1e-6


def test_grey_and_one_bit(tmp_path):
    grey = noise(channels=1)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), unit(grey)[:, :, None].expand(20, 32, 3))
    Image.fromarray(grey > 127).save(tmp_path / "b.png")
    bits = torch.from_numpy(grey > 127).float()
    assert torch.equal(read_image(tmp_path / "b.png")[:, :, 2], bits)


def test_transparency_is_composited_on_white(tmp_path):
    rgba = noise(channels=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    colour, alpha = unit(rgba).double().split([3, 1], dim=2)
    expected = colour * alpha + 1 - alpha
    assert (read_image(tmp_path / "a.png") - expected).abs().max() <= 1e-6
    assert torch.equal(rgb_pixels(unit(rgba)), read_image(tmp_path / "a.png"))
    grey_alpha = Image.fromarray(rgba).convert("LA")
    grey_alpha.save(tmp_path / "b.png")
    grey = unit(np.asarray(grey_alpha)).double()
    expected = (grey[:, :, :1] * grey[:, :, 1:] + 1 - grey[:, :, 1:]).expand(20, 32, 3)
    assert (read_image(tmp_path / "b.png") - expected).abs().max() <= 1e-6


def test_opaque_alpha_changes_no_bit(tmp_path):
    rgba = noise(channels=4)
    rgba[:, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), unit(rgba[:, :, :3]))


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (32, 16))
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    indices = np.arange(32 * 16).reshape(16, 32) % 3
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "a.png", transparency=bytes([128, 255, 0]))
    faded = 127 / 255
    colours = torch.tensor([[1, faded, faded], [0, 0, 1], [1, 1, 1]])
    assert (read_image(tmp_path / "a.png") - colours[indices]).abs().max() <= 1e-6
    image.save(tmp_path / "a.gif", transparency=1)
    colours = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert torch.equal(read_image(tmp_path / "a.gif"), colours[indices])


def test_colour_key_transparency(tmp_path):
    image = Image.new("RGB", (16, 16), (10, 20, 30))
    image.paste((50, 60, 70), (0, 0, 8, 16))
    image.save(tmp_path / "a.png", transparency=(10, 20, 30))
    pixels = read_image(tmp_path / "a.png")
    assert torch.equal(pixels[:, 8:], torch.ones(16, 8, 3))
    assert torch.equal(pixels[0, 0], torch.tensor([50, 60, 70]) / 255)


@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cmyk_without_a_profile(tmp_path, extension):
    """Inks subtract: pure cyan leaves green and blue, full black leaves nothing, none leaves white."""
    image = Image.new("CMYK", (48, 16))
    for column, inks in enumerate([(255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)]):
        image.paste(inks, (16 * column, 0, 16 * column + 16, 16))
    image.save(tmp_path / f"a.{extension}", quality=100)
    pixels = read_image(tmp_path / f"a.{extension}")
    expected = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1]]).repeat_interleave(16, 0)
    assert (pixels - expected).abs().max() <= 2 / 255


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without LittleCMS")
@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cmyk_with_a_profile(tmp_path, extension):
    """In this profile cyan ink prints a middle grey, so sRGB follows from L* by hand.

    L* = 100 * 128 / 255 = 50.196; Y = ((L* + 16) / 116)^3 = 0.18583;
    sRGB = 1.055 Y^(1/2.4) - 0.055 = 0.4683. Pillow's own conversion would give (0, 1, 1).
    """
    profile = cmyk_profile(lambda c, m, y, k: (0 if k else 128 if c else 255, 128, 128))
    image = Image.new("CMYK", (32, 16))
    image.paste((255, 0, 0, 0), (0, 0, 16, 16))
    image.save(tmp_path / f"a.{extension}", quality=100, icc_profile=profile)
    pixels = read_image(tmp_path / f"a.{extension}")
    assert (pixels[:, :16] - 0.4683).abs().max() <= 2 / 255
    assert (pixels[:, 16:] - 1).abs().max() <= 2 / 255


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without LittleCMS")
def test_broken_cmyk_profile_is_named(tmp_path):
    Image.new("CMYK", (32, 16)).save(tmp_path / "a.tif", icc_profile=b"no profile at all")
    with pytest.raises(ImageError, match=r"a\.tif: .*profile.*save it as RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_first_frame_of_an_animation(tmp_path, extension):
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"a.{extension}"
    options = {"lossless": True} if extension == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert torch.equal(read_image(path), torch.tensor([1.0, 0, 0]).expand(16, 32, 3))
    check = check_image(path)
    assert "only the first" in check.warning and (check.width, check.height) == (32, 16)


def test_a_phones_mpo_is_not_called_animated(tmp_path):
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert check_image(tmp_path / "a.jpg").warning == ""
    assert read_image(tmp_path / "a.jpg")[..., 0].min() > 0.98


def encoded(extension, **options):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(
        file, Image.registered_extensions()[f".{extension}"], **options
    )
    return file.getvalue()


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_file(tmp_path, monkeypatch, extension, part, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(extension)
    path = tmp_path / f"a.{extension}"
    path.write_bytes(data[: int(len(data) * part)])
    for read in (read_image, check_image):
        with pytest.raises(
            ImageError, match=rf"^a\.{extension}: is (damaged or cut short|not a pic)"
        ):
            read(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "tif"])
def test_damaged_files_are_read_or_named(tmp_path, extension):
    """Whatever bytes come: a picture in range or an ImageError, never anything else."""
    draw = random.Random(extension)
    data = encoded(extension)
    path = tmp_path / f"a.{extension}"
    refused = 0
    for _ in range(80):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(min(len(broken), draw.choice((64, 4096))))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            pixels = read_image(path)
        except ImageError as error:
            refused += 1
            assert str(error).startswith(path.name)
        else:
            assert pixels.shape[2] == 3 and 0 <= pixels.min() and pixels.max() <= 1
    assert refused


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.png", b"", r"empty \(0 bytes\)"),
        ("text.png", b"this is not a picture\n" * 50, "not a picture of a kind"),
        (
            "eps.jpg",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
            "not a picture of a kind",
        ),
        ("bomb.png", png(60000, 60000, 8, 2), r"too large .*million pixels"),
        ("bomb2.png", png(15000, 15000, 8, 2), r"too large .*million pixels"),
        ("nothing.png", png(0, 64, 8, 2), "a picture|damaged|0 x 64"),
        ("header.png", png(64, 64, 8, 2), "damaged or cut short"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("lifted", [False, True])
def test_files_that_are_no_pictures(tmp_path, monkeypatch, name, data, reason, lifted):
    if lifted:  # some packs do this to the whole process
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=rf"^{name}: .*({reason})"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("size", [(7, 64), (64, 7), (1, 1)])
def test_small_pictures_are_named_with_their_size(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "tiny.png")
    for read in (read_image, image_size, check_image):
        with pytest.raises(ImageError, match=rf"tiny\.png: is {size[0]} x {size[1]} px, .* 8 px"):
            read(tmp_path / "tiny.png")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pictures_without_a_defined_white(tmp_path, dtype):
    Image.fromarray(np.zeros((32, 32), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: .*save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: does not exist"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"^folder\.png: "):
        read_image(tmp_path / "folder.png")


def test_content_counts_not_the_name(tmp_path):
    array = noise()
    Image.fromarray(array).save(tmp_path / "a.jpg", "PNG")
    assert torch.equal(read_image(tmp_path / "a.jpg"), unit(array))


def test_extensions():
    expected = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"}
    assert expected <= set(EXTENSIONS)
    assert (".avif" in EXTENSIONS) == bool(
        "avif" in features.modules and features.check_module("avif")
    )


@pytest.mark.skipif(".avif" not in EXTENSIONS, reason="Pillow without AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (64, 32), (200, 100, 50)).save(tmp_path / "a.avif", quality=100)
    expected = torch.tensor([200, 100, 50]) / 255
    assert (read_image(tmp_path / "a.avif") - expected).abs().max() <= 3 / 255


def test_check_agrees_with_read_on_a_large_jpeg(tmp_path):
    Image.fromarray(noise(300, 500)).save(tmp_path / "a.jpg")
    check = check_image(tmp_path / "a.jpg")
    assert (check.width, check.height) == (500, 300) == image_size(tmp_path / "a.jpg")


def test_graph_images():
    grey = torch.rand(2, 20, 30, 1)
    assert torch.equal(rgb_pixels(grey), grey.repeat(1, 1, 1, 3))
    colour = torch.rand(20, 30, 3)
    assert torch.equal(rgb_pixels(colour), colour)
    with pytest.raises(ValueError, match="2 channels"):
        rgb_pixels(torch.rand(4, 4, 2))


def test_limit_is_pillows_own():
    assert images.MAX_PIXELS == 2 * int(1024 * 1024 * 1024 // 4 // 3)
