# SPDX-License-Identifier: Apache-2.0
"""Datasets are values: nothing changes them later, and equal contents have equal digests."""

import dataclasses
import hashlib
import os
import shutil

import pytest
import torch
from PIL import Image

from graft.trainers.data import Dataset, ImageError, Item, describe, read_folder


def folder(root, names=("a.png", "b.png")):
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (number, 20, 30)).save(root / name)
        (root / name).with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
    return root


def dataset(root, **settings):
    items, warnings = read_folder(root, "a cat")
    return Dataset(items, warnings=warnings, **{"resolution": 512, **settings})


def test_item_takes_a_path_or_pixels():
    for values in ({}, {"path": "a.png", "pixels": torch.rand(32, 32, 3)}):
        with pytest.raises(ValueError, match="either a path or pixels"):
            Item("a cat", **values)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.rand(1, 32, 32, 3), r"\[1, 32, 32, 3\]"),
        (torch.rand(32, 32, 4), r"\[32, 32, 4\]"),
        (torch.rand(8, 32, 3), "32 x 8 px, the least is 16"),
        (torch.full((32, 32, 3), torch.nan), "NaN"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), "uint8"),
    ],
)
def test_item_refuses_what_is_no_picture(pixels, message):
    with pytest.raises(ValueError, match=message):
        Item("a cat", pixels=pixels)


def test_pixels_belong_to_the_item():
    pixels = torch.rand(32, 48, 3)
    item = Item("a cat", pixels=pixels)
    before, digest = pixels.clone(), item.picture_digest()
    pixels.zero_()
    item.read().zero_()
    assert torch.equal(item.read(), before) and item.picture_digest() == digest
    assert item.size == item.measure() == (48, 32) and item.name == ""


def test_pixels_from_the_graph_can_be_trained_on():
    """The host runs nodes in inference mode; its tensors can never enter a backward pass."""
    with torch.inference_mode():
        item = Item("a cat", pixels=torch.rand(32, 32, 3, dtype=torch.float64) * 1.5)
        read = item.read()
    for pixels in (item.pixels, read):
        assert not pixels.is_inference() and pixels.dtype == torch.float32
        assert 0 <= pixels.min() and pixels.max() == 1


def test_values_are_frozen_and_hashable():
    item = Item("a cat", pixels=torch.rand(32, 32, 3))
    whole = Dataset([item])
    assert isinstance(whole.items, tuple) and len(whole) == 1
    assert {item, whole} and item != Item("a cat", pixels=item.pixels)
    for value, name in ((item, "caption"), (whole, "trigger")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")
    other = dataclasses.replace(item, captions="a dog")
    assert other.caption == "a dog" and other.picture_digest() == item.picture_digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"items": ()}, "holds no images"),
        ({"resolution": 15}, "resolution is 15 px, the least is 16"),
    ],
)
def test_dataset_refuses(values, message):
    items = (Item("a cat", pixels=torch.rand(32, 32, 3)),)
    with pytest.raises(ValueError, match=message):
        Dataset(**{"items": items, **values})


def test_item_reads_and_measures_its_file(tmp_path):
    Image.new("RGB", (64, 48), (255, 0, 51)).save(tmp_path / "a.png")
    item = Item("a cat", path=str(tmp_path / "a.png"))
    assert item.measure() == (64, 48) and item.name == "a.png"
    assert torch.equal(item.read(), torch.tensor([255.0, 0, 51]).div(255).expand(48, 64, 3))
    expected = hashlib.sha256(b"file" + (tmp_path / "a.png").read_bytes()).hexdigest()
    assert item.picture_digest() == expected
    with pytest.raises(ImageError, match=r"gone\.png"):
        Item("a cat", path=str(tmp_path / "gone.png")).measure()


def test_digest_ignores_place_names_and_times(tmp_path):
    first = folder(tmp_path / "one")
    digest = dataset(first).digest()
    shutil.copytree(first, tmp_path / "two" / "deep")
    second = tmp_path / "two" / "deep"
    for path in second.iterdir():
        os.utime(path, (1, 1))
    for path in sorted(second.iterdir()):
        path.rename(path.with_name(f"renamed {path.name}"))
    assert dataset(second, source="elsewhere").digest() == digest
    items = [Item("c", pixels=torch.full((32, 32, 3), 0.5)) for _ in range(2)]
    assert Dataset(items[:1]).digest() == Dataset(items[1:]).digest()


def test_digest_follows_contents_and_settings(tmp_path):
    root = folder(tmp_path / "one")
    base = dataset(root)
    digests = [
        base.digest(),
        dataset(root, trigger="sks").digest(),
        dataset(root, resolution=768).digest(),
        Dataset(base.items[::-1], resolution=512).digest(),
        Dataset(base.items[:1], resolution=512).digest(),
    ]
    (root / "a.txt").write_text("another caption", encoding="utf-8")
    digests.append(dataset(root).digest())
    Image.new("RGB", (64, 48), (99, 20, 30)).save(root / "a.png")
    digests.append(dataset(root).digest())
    pixels = torch.rand(32, 32, 3)
    one_bit = pixels.clone()
    one_bit[3, 4, 1] = torch.nextafter(one_bit[3, 4, 1], torch.tensor(0.5))
    for picture in (pixels, one_bit, pixels.reshape(16, 64, 3)):
        digests.append(Dataset((Item("a cat", pixels=picture),)).digest())
    assert len(set(digests)) == len(digests)


def test_digest_keeps_neighbours_apart():
    """("ab", "c") and ("a", "bc") must differ: every part is hashed with its length."""
    pixels = torch.rand(32, 32, 3)
    digests = {
        Dataset([Item(text, pixels=pixels)], trigger=trigger).digest()
        for trigger, text in (("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""))
    }
    assert len(digests) == 4


def test_report(tmp_path):
    root = folder(tmp_path / "cats", ("a.png", "b.png", "c.png"))
    shutil.copy(root / "a.png", root / "d.png")
    (root / "lost.txt").write_text("nothing", encoding="utf-8")
    items, warnings = read_folder(root, "a sks cat")
    wide = Item("", pixels=torch.rand(64, 128, 3))
    report = describe(Dataset((*items, wide), "sks", 64, "cats", warnings)).splitlines()
    assert report == [
        '5 images from "cats", resolution 64',
        "buckets:",
        "     64 x 48    4 images",
        "     80 x 40    1 image",
        "captions: 4 of 5, 4 distinct",
        "without a caption: image 5",
        'trigger "sks": in 1 of 5 captions',
        "same picture twice: a.png = d.png",
        "warning: captions without an image: lost.txt",
    ]


def test_report_finds_equal_pixels():
    pixels = torch.rand(32, 32, 3)
    items = [Item("a", pixels=p) for p in (pixels, torch.rand(32, 32, 3), pixels)]
    assert "same picture twice: image 1 = image 3" in describe(Dataset(items))
