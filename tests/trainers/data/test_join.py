# SPDX-License-Identifier: Apache-2.0
"""Joined datasets: each keeps its own settings, and nothing else changes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from graft.trainers.data import Captioning, Dataset, Framing, Item, join
from graft.trainers.data.order import Order


def pictures(count, start=0, size=(40, 48), **values):
    return [
        Item(f"picture {n}", pixels=torch.full((*size, 3), n / 100), **values)
        for n in range(start, start + count)
    ]


@pytest.fixture
def cats():
    return Dataset(
        pictures(3), "sks", 64, "cats", crops=2, captioning=Captioning(prefix="a cat,", dropout=0.5)
    )


@pytest.fixture
def style():
    return Dataset(pictures(5, 50), "zorb", 32, "style", framing=Framing(flip=True))


def test_every_picture_is_treated_as_in_its_own_dataset(cats, style):
    joined = join([cats, style])
    assert len(joined) == 8 and joined.resolution == 64
    assert joined.triggers == ("sks", "zorb") and joined.trigger == "sks, zorb"
    for dataset, start in ((cats, 0), (style, 3)):
        for i in range(len(dataset)):
            assert joined.texts(start + i) == dataset.texts(i)
            assert joined.choose_text(start + i, 0.7) == dataset.choose_text(i, 0.7)
            assert joined.size(start + i) == dataset.size(i)
            assert joined.views(start + i) == dataset.views(i) == 2
            for k in range(2):
                assert joined.view_key(start + i, k) == dataset.view_key(i, k)
                there, here = joined.view(start + i, k), dataset.view(i, k)
                assert torch.equal(there.pixels, here.pixels) and there.crop == here.crop
    for index in (-1, 8):
        with pytest.raises(IndexError):
            joined.texts(index)


def test_repeats_and_weights_multiply(cats, style):
    cats = replace(cats, items=pictures(3, repeats=2, weight=0.5))
    joined = join([cats, style], repeats=(3, 1), weights=(2, 0.25))
    assert joined.repeats == (6, 6, 6, 1, 1, 1, 1, 1)
    assert [item.weight for item in joined.items] == [1.0] * 3 + [0.25] * 5
    assert Counter(joined.order_items()) == dict(enumerate(joined.repeats))
    order = Order(["one bucket"] * 8, 1, 0, joined.repeats)
    drawn = Counter(order.indices(step)[0] for step in range(order.steps_per_epoch))
    assert drawn == Counter(joined.order_items())


def test_balanced_repeats_and_weights(cats, style):
    """3 and 12 pictures: the first four times each; or weights 15 / (2 * 3) = 2.5 and 15 / (2 * 12) = 0.625."""
    style = replace(style, items=pictures(12, 50))
    assert sum(join([cats, style], balance="repeats").repeats[:3]) == 12
    weights = [item.weight for item in join([cats, style], balance="weights").items]
    assert weights == [2.5] * 3 + [0.625] * 12
    assert sum(weights) == len(weights) and sum(weights[:3]) == sum(weights[3:])
    with pytest.raises(ValueError, match="balance is 'both'"):
        join([cats, style], balance="both")


def test_joining_is_flat(cats, style):
    other = Dataset(pictures(2, 80), resolution=64)
    assert join([join([cats, style]), other]).digest() == join([cats, style, other]).digest()
    assert join([cats]).digest() == cats.digest()
    assert join([cats, style]).digest() != join([style, cats]).digest()
    assert join([cats], repeats=(2,)).digest() != cats.digest()


def test_a_change_reaches_every_part(cats, style):
    joined = join([cats, style]).map(lambda part: replace(part, captioning=Captioning(suffix="!")))
    assert [joined.texts(i)[0] for i in (0, 7)] == ["picture 0!", "picture 54!"]
    with pytest.raises(ValueError, match="are its parts'"):
        replace(joined, framing=Framing(flip=True))
    with pytest.raises(ValueError, match="those of its parts"):
        replace(joined, items=joined.items[:2])


def test_some_pictures_of_a_joined_dataset(cats, style):
    chosen = join([cats, style]).select([7, 1])
    assert [item.caption for item in chosen.items] == ["picture 1", "picture 54"]
    assert chosen.texts(0) == cats.texts(1) and chosen.views(1) == 2
    assert len(join([cats, style]).select([0]).parts) == 1
    with pytest.raises(ValueError, match="no images"):
        cats.select([])


def test_class_labels_are_joined_by_name():
    def labelled(names):
        return Dataset(
            [replace(item, label=n) for n, item in enumerate(pictures(len(names)))], labels=names
        )

    joined = join([labelled(("cat", "owl")), labelled(("bat", "cat"))])
    assert joined.labels == ("bat", "cat", "owl")
    assert [item.label for item in joined.items] == [1, 2, 0, 1]
    numbers = Dataset(pictures(1, label=3))
    assert join([numbers, numbers]).items[0].label == 3
    with pytest.raises(ValueError, match="only numbers"):
        join([labelled(("cat", "owl")), numbers])


def test_class_images_stay(cats, style):
    classes = Dataset(pictures(4, 20))
    joined = join([replace(cats, classes=classes, class_weight=0.5), style])
    assert joined.classes is not None and joined.class_weight == 0.5
    assert joined.classes.digest() == classes.digest()
    assert all(part.classes is None for part in joined.parts)
    with pytest.raises(ValueError, match="different weights, 0.5, 1.0"):
        join([replace(cats, classes=classes, class_weight=0.5), replace(style, classes=classes)])


def test_numbers_that_do_not_fit(cats, style):
    with pytest.raises(ValueError, match="weights are 3 numbers for 2 datasets"):
        join([cats, style], weights=(1, 2, 3))
    with pytest.raises(ValueError, match="no dataset"):
        join([])
