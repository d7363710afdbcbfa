# SPDX-License-Identifier: Apache-2.0
"""Mean losses of epochs: by hand, of whole runs, of runs in parts, and however a batch is cut."""

import math

import pytest

from graft.trainers.data.order import Order
from graft.trainers.epochs import describe, ended, epoch_means
from graft.trainers.events import Epoch, Progress
from tests.trainers.test_loop import make
from tests.trainers.toy import ToyData


class Buckets(ToyData):
    """Seven pictures in two buckets: of 3 and of 4."""

    def __init__(self):
        super().__init__(preserve=0.0)
        self.buckets = [(6, 6)] * 3 + [(6, 8)] * 4


def run(steps, batch=2, accumulate=1, state=None, **more):
    """A run with all that it told."""
    loop, told = make(steps=steps, batch=batch, accumulate=accumulate, **more), []
    loop.sink = told.append
    if state is not None:
        loop.resume(state)
    loop.run()
    return loop, [event for event in told if isinstance(event, Epoch)]


def test_means_by_hand():
    """(1 + 2 + 6) / 3 = 3 and (0 + 0 + 3) / 3 = 1; the seventh step begins an epoch that is not whole."""
    losses = [1.0, 2.0, 6.0, 0.0, 0.0, 3.0, 100.0]
    assert epoch_means(losses, 3) == [3.0, 1.0]
    assert [ended(losses[:n], 3) for n in (0, 2, 4, 7)] == [None] * 4
    assert ended(losses[:6], 3) == Epoch(2, 6, 1.0)
    assert describe(losses, 3) == ["2 epochs of 3 steps, mean loss 3.0000, 1.0000"]
    assert describe(losses[:2], 3) == []
    assert describe([5.0], 1) == ["1 epoch of 1 step, mean loss 5.0000"]


def test_many_epochs_are_told_by_first_least_and_last():
    """Means 9, 8, ... 1, 2: the least is the ninth."""
    losses = [float(loss) for loss in (9, 8, 7, 6, 5, 4, 3, 2, 1, 2)]
    (line,) = describe(losses, 1)
    assert line == (
        "10 epochs of 1 step, mean loss 9.0000 (first) -> 1.0000 (least, epoch 9) -> 2.0000 (last)"
    )


def test_an_epoch_of_two_buckets_has_the_steps_of_both():
    """Buckets of 3 and 4 pictures in batches of 2 are ceil(3/2) + ceil(4/2) = 4 steps."""
    loop, epochs = run(9, data=Buckets())
    assert [(e.epoch, e.step) for e in epochs] == [(1, 4), (2, 8)]
    for number, epoch in enumerate(epochs):
        part = loop.losses[4 * number : 4 * number + 4]
        assert epoch.loss == pytest.approx(sum(part) / 4, rel=1e-12)


def test_repeats_count():
    """5 pictures, one of them 4 times, are 8 places: 4 steps of 2."""
    assert Order([0] * 5, 2, 0, repeats=[4, 1, 1, 1, 1]).steps_per_epoch == 4


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_run_in_parts_has_the_epochs_of_one(cut):
    _, whole = run(8, data=Buckets())
    head, first = run(cut, data=Buckets(), total_steps=8)
    _, second = run(8 - cut, data=Buckets(), total_steps=8, state=head.state())
    assert first + second == whole and len(whole) == 2


def test_every_cut_of_the_batch_has_the_same_epochs():
    found = [run(4, batch, 4 // batch)[1] for batch in (4, 2, 1)]
    for epochs in found:
        assert [(e.epoch, e.step) for e in epochs] == [(1, 2), (2, 4)]
        for epoch, first in zip(epochs, found[0], strict=True):
            assert math.isclose(epoch.loss, first.loss, rel_tol=1e-5)


def test_an_interrupt_that_comes_with_the_step_does_not_lose_the_epoch():
    loop, told = make(steps=8, batch=4, accumulate=1), []

    def sink(event):
        told.append(event)
        if isinstance(event, Progress) and event.step == 2:
            raise KeyboardInterrupt

    loop.sink = sink
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert loop.step == 2 and [e.epoch for e in told if isinstance(e, Epoch)] == [1]
