# SPDX-License-Identifier: Apache-2.0
"""The order of pictures: every epoch covers all, batches keep to one bucket."""

from collections import Counter

import pytest

from graft.trainers.data.order import Order, overcounted


def test_an_epoch_has_every_picture_and_no_batch_mixes_buckets():
    buckets = ["a"] * 5 + ["b"] * 3 + ["c"]
    order = Order(buckets, 2, seed=1)
    assert order.steps_per_epoch == 3 + 2 + 1
    for epoch in range(3):
        batches = [order.indices(epoch * 6 + i) for i in range(6)]
        assert {i for batch in batches for i in batch} == set(range(9))
        assert all(len({buckets[i] for i in batch}) == 1 and len(batch) == 2 for batch in batches)


def test_without_a_tail_an_epoch_is_a_permutation():
    order = Order(["a"] * 12, 4, seed=0)
    for epoch in range(4):
        assert sorted(i for s in range(3) for i in order.indices(epoch * 3 + s)) == list(range(12))
    assert order.indices(0) != order.indices(3)


def test_order_is_a_function_of_seed_and_step():
    first, second = Order(["a"] * 9, 2, 5), Order(["a"] * 9, 2, 5)
    assert [first.indices(s) for s in (7, 0, 3)] == [second.indices(s) for s in (7, 0, 3)]
    assert any(first.indices(s) != Order(["a"] * 9, 2, 6).indices(s) for s in range(5))


def test_no_pictures():
    with pytest.raises(ValueError, match="no pictures"):
        Order([], 1, 0)


def test_pictures_that_cannot_fill_a_step_are_known():
    """What is said is what an epoch has: batches of 4 from buckets of 8, 1, 1 (with 4 repeats) and 3 pictures."""
    buckets = ["a"] * 8 + ["b", "c"] + ["d"] * 3
    repeats = [1] * 9 + [4] + [1] * 3
    assert overcounted(buckets, 4, repeats) == {8: 4.0}
    order = Order(buckets, 4, 0, repeats)
    had = Counter(i for step in range(order.steps_per_epoch) for i in order.indices(step))
    assert [had[i] for i in range(10)] == [1] * 8 + [4, 4]
    assert overcounted(buckets, 16, repeats) == {8: 16.0, 9: 4.0} | dict.fromkeys(
        (10, 11, 12), 16 / 3
    )
    assert overcounted(buckets, 2, repeats) == {8: 2.0} and overcounted(buckets, 1, repeats) == {}
    assert overcounted(["a"], 8, [1]) == {}, "alone in the dataset"
