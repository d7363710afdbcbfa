# SPDX-License-Identifier: Apache-2.0
"""Small files that would unpack to gigabytes or take minutes: refused by name, soon, and in little memory."""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from graft.trainers.data.images import MAX_PIXELS, ImageError, check_image, image_size, read_image

ROOT = Path(__file__).resolve().parents[3]


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks, size=(64, 64), data=None):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    data = zlib.compress((b"\0" + bytes(3 * size[0])) * size[1]) if data is None else data
    ends = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + ends


def zeros(count):
    """so many zero bytes, packed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**16)) for _ in range(count >> 16)) + packer.flush()


def webp_of(width, height):
    """An animation whose header says that it is that large."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    at = data.index(b"VP8X")
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data[: at + 12] + sides + data[at + 18 :]


BOMBS = {
    "zTXt": (lambda: png(chunk(b"zTXt", b"a\0\0" + zeros(2**28))), "MAX_TEXT_CHUNK"),
    "iTXt": (lambda: png(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(2**28))), "MAX_TEXT_CHUNK"),
    "iCCP": (lambda: png(chunk(b"iCCP", b"a\0\0" + zeros(2**28))), "MAX_TEXT_CHUNK"),
    "many zTXt": (
        lambda: png(*[chunk(b"zTXt", b"a\0\0" + zeros(2**19))] * 400),
        "MAX_TEXT_MEMORY",
    ),
    "60000 x 60000": (lambda: png(size=(60000, 60000), data=b""), "too large"),
    "webp": (lambda: webp_of(16383, 10000), r"too large \(16383 x 10000 px, the most is 67"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(tmp_path, name):
    make, message = BOMBS[name]
    path = tmp_path / "bomb.png"
    path.write_bytes(make())
    assert path.stat().st_size < 500_000
    for read in (check_image, image_size, read_image):
        began = time.perf_counter()
        with pytest.raises(ImageError, match=message):
            read(path)
        assert time.perf_counter() - began < 5


def test_more_pixels_than_the_header_says_are_not_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(png(data=zeros(2**28)))
    began = time.perf_counter()
    assert read_image(tmp_path / "a.png").shape == (64, 64, 3)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_a_thousand_frames_one_is_read(tmp_path, kind):
    path = tmp_path / f"many.{kind.lower()}"
    frames = [Image.new("RGB", (32, 32), (n % 256, n // 256, 0)) for n in range(1000)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    began = time.perf_counter()
    assert "only the first picture" in check_image(path).warning
    assert float(read_image(path)[..., :2].max()) < 0.05
    assert time.perf_counter() - began < 2


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((2048, 2048), 50).convert("RGB").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    (tmp_path / "usual.jpg").write_bytes(data)
    assert check_image(tmp_path / "usual.jpg").width == 2048
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "bomb.jpg").write_bytes(data[:-2] + last[:40] * 2000 + b"\xff\xd9")
    began = time.perf_counter()
    with pytest.raises(ImageError, match=r"bomb\.jpg: is a JPEG of 20\d\d scans"):
        check_image(tmp_path / "bomb.jpg")
    assert time.perf_counter() - began < 2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_beyond_all_sense_is_passed_over_or_named(tmp_path):
    """Directories that point to themselves, and counts of 2^32."""
    entry = struct.pack(">HHII", 0x0112, 4, 2**32 - 1, 8)
    for exif in (
        b"MM\0*\0\0\0\x08" + b"\xff" * 5000,
        b"MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + struct.pack(">I", 8),
        b"MM\0*\0\0\0\x08" + struct.pack(">H", 65535) + entry * 5000,
        b"II*\0\xff\xff\xff\xff",
        b"",
    ):
        (tmp_path / "a.png").write_bytes(png(chunk(b"eXIf", exif)))
        for read in (check_image, image_size, read_image):
            try:
                read(tmp_path / "a.png")
            except ImageError as error:
                assert "damaged" in str(error)


def test_pillows_limits_of_text_are_what_we_rely_on():
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20 and PngImagePlugin.MAX_TEXT_MEMORY <= 2**26


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux gives it")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_largest_picture_is_checked_in_a_gigabyte(tmp_path, kind):
    path = tmp_path / "large.png"
    if kind == "PNG":
        side = int(MAX_PIXELS**0.5)
        path.write_bytes(png(size=(side, side), data=zeros(2**20 * (3 * side * (side + 1) >> 20))))
    else:
        path.write_bytes(webp_of(8192, 8192))
    program = f"""if True:
        import resource, sys
        sys.path.insert(0, {str(ROOT)!r})
        import tests.conftest
        from graft.trainers.data.images import ImageError, check_image
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before = peak()
        try:
            check_image({str(path)!r})
        except ImageError as error:
            print(error)
        print("MiB:", peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    found = re.search(r"MiB: (\d+)", done.stdout)
    assert found, done.stderr
    assert int(found[1]) < 1024, done.stdout
