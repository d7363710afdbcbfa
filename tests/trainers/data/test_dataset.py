# SPDX-License-Identifier: Apache-2.0
"""Datasets are values: nothing changes them later, and equal contents have equal digests."""

import dataclasses
import hashlib
import os
import shutil

import pytest
import torch
from PIL import Image

from graft.trainers.data import (
    Captioning,
    Dataset,
    Framing,
    ImageError,
    Item,
    check_texts,
    describe,
    join,
    notes,
    read_folder,
)


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
        (torch.rand(7, 32, 3), "32 x 7 px, the least is 8"),
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
        ({"resolution": 7}, "resolution is 7 px, the least is 8"),
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


@pytest.mark.parametrize("options", [Captioning, Framing])
def test_every_option_is_in_the_digest(options):
    """Each field takes another value of its kind; equal values have equal digests."""
    item = Item("a cat", pixels=torch.full((32, 32, 3), 0.5))
    name = options.__name__.lower()

    def digest(**values):
        return Dataset([item], resolution=64, **{name: options(**values)}).digest()

    digests = {digest()}
    for field in dataclasses.fields(options):
        old, choices = field.default, field.metadata.get("choices", ())
        other = {
            bool: lambda old: not old,
            int: lambda old: old + 8,
            float: lambda old: (old + 1) / 2 if old < 1 else 0.5,
            str: lambda old, choices=choices: next((c for c in choices if c != old), f"{old};"),
        }[type(old)](old)
        assert digest(**{field.name: other}) == digest(**{field.name: other})
        digests.add(digest(**{field.name: other}))
    assert len(digests) == 1 + len(dataclasses.fields(options))


def test_class_images_and_their_weight_are_in_the_digest():
    def plain(value):
        return Dataset([Item("a", pixels=torch.full((32, 32, 3), value))])

    one, other = plain(0.25), plain(0.75)
    digests = [
        plain(0.5).digest(),
        dataclasses.replace(plain(0.5), class_weight=0.5).digest(),
        dataclasses.replace(plain(0.5), classes=one).digest(),
        dataclasses.replace(plain(0.5), classes=other).digest(),
        dataclasses.replace(plain(0.5), classes=one, class_weight=0.5).digest(),
    ]
    # A weight of class images that are not there does not matter.
    assert digests[0] == digests[1] and len(set(digests)) == 4


def test_contents_may_be_remembered_for_the_digest():
    items = [Item("a", pixels=torch.rand(32, 32, 3)) for _ in range(2)]
    known = {id(item): item.picture_digest() for item in items}
    whole = join([Dataset(items[:1]), Dataset(items[1:])])
    masks = {id(item): item.mask_digest() for item in whole.items}
    found = whole.digest(lambda item: known[id(item)], lambda item: masks.pop(id(item)))
    assert found == whole.digest() and not masks


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
        "warning: Alone in a bucket: image 5 (80 x 40). With more than one picture in a step it is repeated until the "
        "step is full, and counts that often.",
    ]


def test_report_finds_equal_pixels():
    pixels = torch.rand(32, 32, 3)
    items = [Item("a", pixels=p) for p in (pixels, torch.rand(32, 32, 3), pixels)]
    assert "same picture twice: image 1 = image 3" in describe(Dataset(items))


def test_report_of_joined_datasets_with_everything():
    """What is said of repeats, classes, masks, texts, small pictures and class images, word for word."""
    pixels = torch.rand(64, 64, 3)
    cats = Dataset(
        [Item(("a cat", "a sks cat"), pixels=pixels, repeats=2, label=0, mask=torch.ones(64, 64))],
        "sks",
        64,
        "cats",
        crops=2,
        captioning=Captioning(prefix="photo of", dropout=0.1),
        framing=Framing(flip=True),
        labels=("cat", "dog"),
    )
    small = Item("", pixels=torch.rand(32, 32, 3), label=1)
    dogs = Dataset([Item("a dog", pixels=torch.rand(64, 48, 3), label=1), small], "zorb", 64)
    dogs = dataclasses.replace(dogs, labels=("cat", "dog"), classes=Dataset([small], resolution=32))
    assert describe(join([cats, dogs], weights=(1, 0.5))).splitlines() == [
        '3 images from "cats", 2 datasets joined',
        '  1 image from "cats", resolution 64, 2 crops of each, also mirrored, repeats 2, weight 1',
        "  2 images, resolution 64, repeats 1, weight 0.5",
        "buckets:",
        "     32 x 32    1 image",
        "     48 x 64    1 image",
        "     64 x 64    1 image",
        "repeats: 2 images x 1, 1 image x 2; an epoch has 4",
        "classes: 0 cat (1 image), 1 dog (2 images)",
        "masks: 1 of 3",
        "captions: 2 of 3, 3 distinct",
        "without a caption: image 3",
        "texts: 4 distinct, 1 to 3 for an image",
        'trigger "sks": in 1 of 1 captions',
        'trigger "zorb": in 0 of 2 captions',
        "too small for the resolution: image 3 (32 x 32)",
        "warning: Alone in a bucket: image 2 (48 x 64), image 3 (32 x 32). With more than one picture in a step it is "
        "repeated until the step is full, and counts that often.",
        "class images, weight 1:",
        "  1 image, resolution 32",
        "  buckets:",
        "       32 x 32    1 image",
        "  classes: 1 (1 image)",
        "  captions: 0 of 1, 0 distinct",
        "  without a caption: image 1",
    ]


def test_captions_that_cannot_be_read_are_named():
    items = [Item(text, pixels=torch.rand(32, 32, 3)) for text in ("{a|b}", "{a", "b}", "c")]
    check_texts(Dataset(items))
    with pytest.raises(ValueError, match="2 captions cannot be used") as caught:
        check_texts(Dataset(items, captioning=Captioning(wildcards=True)))
    assert "image 2: a '{'" in str(caught.value) and "image 3: a '}'" in str(caught.value)


def noted(captions=("a",), weight=1.0, trigger="", crops=1, **settings):
    items = [Item(captions, pixels=torch.rand(32, 32, 3), weight=weight)]
    return notes(Dataset(items, trigger, 32, crops=crops, **settings))


def test_what_is_hardly_meant_is_said():
    assert noted() == []
    assert noted(weight=0.0) == ["Weight 0, so nothing is learned from them: image 1."]
    assert noted(framing=Framing(crop="random"), crops=2) == []
    (said,) = noted(framing=Framing(crop="random"))
    assert "crops is 1, so each picture has one random crop, the same in the whole run" in said
    assert said in describe(
        Dataset([Item("a", pixels=torch.rand(32, 32, 3))], framing=Framing(crop="random"))
    )


def test_a_placeholder_that_stays_is_said():
    on, off = Captioning(add_trigger=True), Captioning(prefix="[trigger],")
    assert noted(("a", "a [trigger]"), trigger="sks", captioning=on) == []
    assert noted(("a [trigger]",), trigger="sks") == [
        "[trigger] is trained as it stands: image 1. To have the trigger there, switch add_trigger on in Captions."
    ]
    for how, where in ((on, "image 1"), (off, "image 1, prefix")):
        assert noted(("a [trigger]",), captioning=how) == [
            f"[trigger] is trained as it stands: {where}. To have the trigger there, name the trigger where the "
            "pictures are loaded, and switch add_trigger on in Captions."
        ]


def test_lone_pictures_are_named_with_their_part():
    one, other = torch.rand(64, 64, 3), torch.rand(32, 96, 3)
    left = Dataset([Item("a", pixels=one), Item("a", pixels=one)], resolution=64)
    right = Dataset([Item("b", pixels=other)], resolution=64, framing=Framing(crop="random"))
    said = notes(join([left, right]), 4)
    assert len(said) == 2 and "for a step of 4: image 3 4 times. Give them the shape" in said[0]
    assert notes(left, 4) == []
