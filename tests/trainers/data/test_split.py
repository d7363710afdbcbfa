# SPDX-License-Identifier: Apache-2.0
"""Held-out pictures: how many, which, and that they stay when pictures come."""

from dataclasses import replace

import pytest
import torch

from graft.trainers.data import Dataset, Framing, Item, join, split


def dataset(numbers):
    items = [Item(str(n), pixels=torch.full((32, 32, 3), n / 1000)) for n in numbers]
    return Dataset(items, resolution=32)


def captions(part):
    return {item.caption for item in part.items}


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(10, 0.2, 2), (10, 0.01, 1), (10, 0.99, 9), (3, 0.5, 2), (2, 0.1, 1)],
)
def test_the_share_is_held_out(count, share, held):
    train, test = split(dataset(range(count)), share)
    assert (len(train), len(test)) == (count - held, held)
    assert captions(train) | captions(test) == set(map(str, range(count)))
    numbers = [int(item.caption) for item in train.items]
    assert numbers == sorted(numbers)


def test_order_names_and_more_pictures_do_not_reshuffle():
    whole, share = dataset(range(100)), 0.2
    held = captions(split(whole, share)[1])
    assert captions(split(dataset(range(99, -1, -1)), share)[1]) == held
    # One more of 100: still 20 are held out, so at most one gives way to the newcomer.
    for new in range(100, 120):
        more = captions(split(dataset([new, *range(100)]), share)[1])
        assert len(more) == 20 and len(held - more) <= 1
    assert captions(split(whole, 0.1)[1]) < held < captions(split(whole, 0.5)[1])


def test_the_seed_chooses():
    held = [frozenset(captions(split(dataset(range(50)), 0.1, seed)[1])) for seed in range(4)]
    assert len(set(held)) == 4
    # 400 splits of 10: each picture is held out 200 times, with a deviation of sqrt(400 / 4) = 10.
    times = [0] * 10
    for seed in range(400):
        for caption in captions(split(dataset(range(10)), 0.5, seed)[1]):
            times[int(caption)] += 1
    assert all(abs(count - 200) <= 45 for count in times)


def test_equal_pictures_are_on_one_side():
    for seed in range(20):
        train, test = split(dataset([1, 2, 2, 2, 3]), 0.4, seed)
        assert not captions(train) & captions(test)


def test_parts_and_class_images():
    cats = replace(dataset(range(5)), classes=dataset([900]), framing=Framing(flip=True))
    whole = join([cats, dataset(range(10, 15))])
    train, test = split(whole, 0.4)
    assert train.classes is not None and test.classes is None and len(test) == 4
    for part in (train, test):
        for i, item in enumerate(part.items):
            assert part.views(i) == (2 if int(item.caption) < 10 else 1)


def test_what_cannot_be_split():
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="the held-out share is"):
            split(dataset(range(4)), share)
    with pytest.raises(ValueError, match="1 different picture of 3"):
        split(dataset([7, 7, 7]), 0.5)
