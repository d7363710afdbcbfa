# SPDX-License-Identifier: Apache-2.0
"""Folders that mean something: repeats, classes, masks, several captions."""

import numpy as np
import pytest
import torch
from PIL import Image

from graft.trainers.data import (
    Dataset,
    ImageError,
    Item,
    class_names,
    folder_fingerprint,
    read_folder,
)


def picture(path, size=(32, 24), colour="red", mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return root


def test_repeats_and_captions_of_kohya_folders(folder):
    """As sd-scripts reads `10_sks dog`: ten repeats, and the rest of the name is the caption."""
    for name in (
        "10_sks dog/1.png",
        "10_sks dog/2.png",
        "1_dog/1.png",
        "1_dog/deep/9.png",
        "lost.png",
    ):
        picture(folder / name)
    picture(folder / "notes" / "0.png")
    (folder / "10_sks dog" / "2.txt").write_text("a sks dog, sitting")
    items, warnings = read_folder(folder, layout="repeats")
    assert [(item.caption, item.repeats) for item in items] == [
        ("dog", 1),
        ("sks dog", 10),
        ("a sks dog, sitting", 10),
    ]
    assert warnings == (
        "not read, as they are not in a folder with repeats: 1_dog/deep/9.png, lost.png, notes/0.png",
    )
    assert len(Dataset(items).order_items()) == 21
    deep, _ = read_folder(folder, "a dog", recursive=True, layout="repeats")
    assert [item.caption for item in deep] == ["a dog"] * 3 + ["a sks dog, sitting"]


def test_folders_without_repeats_are_named(folder):
    picture(folder / "cats" / "1.png")
    with pytest.raises(
        ValueError, match=r"no folder in 'data' is named after its repeats.*found cats"
    ):
        read_folder(folder, layout="repeats")
    picture(folder / "0_cats" / "1.png")
    with pytest.raises(ValueError, match="0_cats: 0 repeats"):
        read_folder(folder, layout="repeats")


def test_a_folder_for_each_class(folder):
    for name in ("b10/1.png", "b2/1.png", "a/2.png", "a/10.png"):
        picture(folder / name)
    items, _ = read_folder(folder, layout="classes")
    # Python's sorted() of the names, as torchvision.datasets.ImageFolder numbers classes: b10 < b2.
    assert class_names(folder) == ("a", "b10", "b2")
    assert [(item.label, item.caption, item.name) for item in items] == [
        (0, "a", "2.png"), (0, "a", "10.png"), (2, "b2", "1.png"), (1, "b10", "1.png"),
    ]  # fmt: skip
    dataset = Dataset(items, labels=class_names(folder))
    assert dataset.labels[dataset.items[2].label] == "b2"


def test_an_empty_class_is_named(folder):
    picture(folder / "cat" / "1.png")
    (folder / "dog").mkdir()
    picture(folder / "owl" / "deep" / "1.png")
    with pytest.raises(ValueError, match="dog: a class without an image") as caught:
        read_folder(folder, layout="classes")
    assert "owl: a class without an image" in str(caught.value)
    picture(folder / "dog" / "1.png")
    items, _ = read_folder(folder, recursive=True, layout="classes")
    assert [item.label for item in items] == [0, 1, 2]


def test_classes_need_folders(folder):
    picture(folder / "1.png")
    with pytest.raises(ValueError, match="there are no folders in 'data', so there are no classes"):
        read_folder(folder, layout="classes")
    with pytest.raises(ValueError, match="the layout is 'kohya'"):
        read_folder(folder, "a", layout="kohya")


def test_each_line_is_a_caption_only_by_choice(folder):
    picture(folder / "1.png")
    (folder / "1.txt").write_text("a cat\n\n  a   black cat \n")
    assert read_folder(folder)[0][0].captions == ("a cat a black cat",)
    assert read_folder(folder, several=True)[0][0].captions == ("a cat", "a black cat")


def test_caption_files_of_both_kinds(folder):
    for name in "abc":
        picture(folder / f"{name}.png")
    (folder / "a.caption").write_text("from caption")
    (folder / "b.caption").write_text("from caption")
    (folder / "b.txt").write_text("from txt")
    (folder / "c.caption").write_text("from caption")
    (folder / "c.txt").write_text("")
    items, warnings = read_folder(folder)
    assert [item.caption for item in items] == ["from caption", "from txt", "from caption"]
    assert warnings == ("both .txt and .caption are there, .txt is read: b.txt, c.txt",)


def test_masks_from_files(folder):
    picture(folder / "cat.png")
    picture(folder / "dog.png")
    pixels = np.zeros((24, 32), np.uint8)
    pixels[6:, 8:] = 255
    pixels[0, 0] = 51
    Image.fromarray(pixels).save(folder / "cat-masklabel.png")
    items, warnings = read_folder(folder, "a pet", masks="files")
    assert [item.name for item in items] == ["cat.png", "dog.png"]
    assert warnings == ("images without a mask, of which all counts: dog.png",)
    assert torch.allclose(items[0].read_mask(), torch.from_numpy(pixels / 255).float())
    assert items[1].read_mask() is None and items[0].has_mask and not items[1].has_mask
    plain, warnings = read_folder(folder, "a pet")
    assert len(plain) == 2 and plain[0].read_mask() is None
    assert warnings == ("masks that are not used (choose 'files'): cat-masklabel.png",)
    assert Dataset(plain).digest() != Dataset(items).digest()


def test_a_mask_is_a_picture_where_it_belongs_to_none(folder):
    picture(folder / "cat-masklabel.png")
    assert read_folder(folder, "a")[0][0].name == "cat-masklabel.png"
    with pytest.raises(ValueError, match="masks are to come from files, but 'data' has none"):
        read_folder(folder, "a", masks="files")
    with pytest.raises(ValueError, match="masks are 'black'"):
        read_folder(folder, "a", masks="black")


def test_a_mask_of_the_wrong_size_and_a_broken_one_are_named(folder):
    for name in ("cat", "dog"):
        picture(folder / f"{name}.png")
    picture(folder / "cat-masklabel.png", (24, 32))
    (folder / "dog-masklabel.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 files in 'data' cannot be used") as caught:
        read_folder(folder, "a", masks="files")
    assert "cat-masklabel.png: the mask is 24 x 32 px, its picture cat.png 32 x 24 px" in str(
        caught.value
    )
    assert "dog-masklabel.png: is not a picture" in str(caught.value)
    item = Item("a", path=str(folder / "cat.png"), mask=str(folder / "cat-masklabel.png"))
    with pytest.raises(ImageError, match="make them the same size"):
        item.read_mask()


def test_masks_from_alpha(folder):
    image = Image.new("RGBA", (32, 24), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 24))
    image.save(folder / "cat.png")
    picture(folder / "dog.png")
    items, _ = read_folder(folder, "a", masks="alpha")
    mask = items[0].read_mask()
    assert mask.shape == (24, 32) and not mask[:, :16].any() and bool((mask[:, 16:] == 1).all())
    assert items[1].read_mask() is None
    (folder / "cat.png").unlink()
    with pytest.raises(ValueError, match="no image in 'data' is transparent"):
        read_folder(folder, "a", masks="alpha")


def test_alpha_is_turned_upright_with_its_picture(folder):
    image = Image.new("RGBA", (32, 24), (10, 20, 30, 255))
    image.paste((10, 20, 30, 0), (0, 0, 32, 6))  # the top row of the stored picture
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the stored top is on the right
    image.save(folder / "cat.png", exif=exif)
    items, _ = read_folder(folder, "a", masks="alpha")
    mask = items[0].read_mask()
    assert mask.shape == (32, 24) == items[0].read().shape[:2]
    assert not mask[:, 18:].any() and bool((mask[:, :18] == 1).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask": torch.rand(24, 32, 1)}, r"a mask is torch.float32 \[24, 32, 1\]"),
        ({"mask": torch.rand(32, 24)}, "the mask is 24 x 32 px, its picture 32 x 24 px"),
        ({"mask": torch.full((24, 32), torch.nan)}, "a mask holds NaN"),
        ({"mask_from_alpha": True}, "needs a picture file"),
        ({"repeats": 0}, "repeats are 0"),
        ({"weight": -1.0}, "weight of a picture is -1"),
        ({"weight": float("inf")}, "weight of a picture is inf"),
        ({"label": -1}, "class label is -1"),
    ],
)
def test_an_item_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        Item("a", pixels=torch.rand(24, 32, 3), **values)


def test_every_field_of_an_item_is_in_the_digest(folder):
    pixels, mask = torch.rand(24, 32, 3), torch.rand(24, 32)

    def digest(captions="a", **values):
        return Dataset([Item(captions, pixels=pixels, **values)]).digest()

    digests = [
        digest(), digest(("a", "b")), digest(("a b",)), digest(repeats=2), digest(weight=2.0),
        digest(label=0), digest(label=1), digest(mask=mask), digest(mask=mask.flip(0)),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert digest(weight=2) == digest(weight=2.0) and digest(mask=mask.clone()) == digest(mask=mask)


def test_the_fingerprint_follows_masks_metadata_and_other_captions(folder):
    picture(folder / "cat.png")
    prints = {folder_fingerprint(folder)}
    picture(folder / "cat-masklabel.png")
    prints.add(folder_fingerprint(folder))
    (folder / "cat.caption").write_text("a cat")
    prints.add(folder_fingerprint(folder))
    (folder / "metadata.jsonl").write_text("{}")
    prints.add(folder_fingerprint(folder))
    prints.add(folder_fingerprint(folder, recursive=True))
    (folder / "an empty class").mkdir()
    prints.add(folder_fingerprint(folder))
    prints.add(folder_fingerprint(folder, recursive=True))
    assert len(prints) == 5
