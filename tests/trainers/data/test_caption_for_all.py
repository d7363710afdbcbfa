# SPDX-License-Identifier: Apache-2.0
"""One caption for all pictures."""

from dataclasses import replace

import pytest
import torch

from graft.trainers.data import Captioning, Dataset, Item, join, with_caption


def pictures(count=2, caption="old", **more):
    return Dataset(
        tuple(Item(caption, pixels=torch.zeros(64, 64, 3)) for _ in range(count)), **more
    )


def test_every_picture_has_it_and_nothing_else_changes():
    before = pictures(trigger="zork", resolution=64, crops=3)
    made = with_caption(before, "A [v]")
    assert [made.texts(i) for i in range(2)] == [("A [v]",)] * 2
    assert replace(made, items=before.items).digest() == before.digest() != made.digest()


def test_of_joined_datasets_all_parts_have_it_and_class_images_keep_theirs():
    classes = pictures(1, "a dog")
    joined = join([pictures(1), pictures(2)])
    made = with_caption(replace(joined, classes=classes), "A [v]")
    assert [made.texts(i) for i in range(3)] == [("A [v]",)] * 3
    assert made.classes.texts(0) == ("a dog",)


def test_what_becomes_of_captions_stays():
    made = with_caption(pictures(captioning=Captioning(prefix="photo:", dropout=0.1)), "A [v]")
    assert made.texts(0) == ("photo: A [v]", "")


def test_no_caption_is_refused():
    with pytest.raises(ValueError, match="caption"):
        with_caption(pictures(), "a" * 100_001)
