# SPDX-License-Identifier: Apache-2.0
"""The monitor: it changes nothing, it keeps the best, and it ends runs for a reason only."""

import contextlib
import dataclasses
import math

import pytest
import torch

from graft.adapters.change import Change, Measure
from graft.trainers.events import Progress, Validated, Warned
from graft.trainers.loop import Diverged
from graft.trainers.monitor import MARGIN, ZERO_STEPS, Monitor, NothingLearned
from graft.trainers.plan import Plan
from graft.trainers.state import State
from graft.trainers.validation import Validator
from tests.trainers.test_loop import make
from tests.trainers.toy import ToyData


class Series:
    """A validator that gives a series of losses, the last one for ever; each at two noise levels."""

    def __init__(self, *losses):
        self.losses = list(losses)

    def __call__(self):
        loss = self.losses.pop(0) if len(self.losses) > 1 else self.losses[0]
        return ((0.5, loss - 0.01), (5.0, loss + 0.01))


def monitor(losses=None, weights=None, told=None, **plan):
    plan = Plan(**{"steps": 1000, "validate_every": 10, **plan})
    validator = None if losses is None else Series(*losses)
    tensors = weights or (lambda: {"w": torch.zeros(1)})
    sink = (lambda event: None) if told is None else told.append
    return Monitor(tensors, plan, sink, validator)


def drive(watch, steps, loss=0.1, norm=1.0, first=1, total=1000):
    """Give steps to a monitor until it ends the run; the number of the last one."""
    for step in range(first, first + steps):
        value = loss(step) if callable(loss) else loss
        if watch(Progress(step, total, value, 1e-4, norm, 1.0)):
            return step
    return first + steps - 1


def watched(steps=12, every=4, seed=3, part=None, state=None, end=None, kept=None, **settings):
    """A toy run with everything on; returns loop, monitor and events. ``kept`` gets the states after its steps."""
    loop, told = make(steps=part or steps, total_steps=steps, seed=seed, **settings), []
    data = ToyData(count=3, preserve=0.0)
    data.clean = data.clean * 0.7 + 0.2
    validator = Validator(loop.denoiser, data, seed, batch_size=2)
    plan = Plan(steps=steps, validate_every=every, patience=100)
    measure = Measure(loop.denoiser.network, loop.network.layers)
    loop.monitor = Monitor(loop.network.tensors, plan, told.append, validator, measure)
    if state is not None:
        loop.resume(state, end)
    if kept is not None:
        loop.after = lambda step: kept.append(
            dataclasses.replace(loop.state(), **loop.monitor.state())
        )
    loop.monitor.begin(state, is_same_run=end is not None)
    loop.run()
    loop.monitor.finish(loop.step)
    return loop, loop.monitor, told


def test_a_watched_run_trains_what_an_unwatched_one_does():
    loop, found, told = watched()
    plain = make(steps=12, total_steps=12)
    plain.run()
    assert loop.losses == plain.losses
    for key, value in plain.network.tensors().items():
        assert torch.equal(value, loop.network.tensors()[key]), key
    validated = [event for event in told if isinstance(event, Validated)]
    assert [event.step for event in validated] == [0, 4, 8, 12]
    assert found.rows == [(event.step, event.loss) for event in validated]
    for event in validated:
        mean = math.fsum(loss for _, loss in event.per_sigma) / 8
        assert len(event.per_sigma) == 8 and event.loss == pytest.approx(mean)
    assert set(validated[-1].change) == {"input", "attn2", "output"}
    assert all(value == 0 for value in validated[0].change.values())
    assert all(value > 0 for value in validated[-1].change.values())


def test_a_resumed_run_is_measured_with_the_same_noise():
    _, whole, _ = watched()
    head, first, _ = watched(part=6)
    _, second, _ = watched(part=6, state=head.state())
    parts = dict(first.rows) | dict(second.rows)
    assert parts == dict(whole.rows) | {6: dict(first.rows)[6]}
    assert dict(first.rows)[6] == dict(second.rows)[6]


def test_the_best_state_is_that_of_its_step():
    """A high rate makes it worse at the end; the weights kept are those of a run that ended at the best look."""
    loop, found, _ = watched(steps=400, part=32, lr=0.1)
    losses = {step: loss for step, loss in found.rows if step > 0}
    best = min(losses, key=losses.get)
    assert best < 32, "the run has to get worse for this to say anything"
    assert (found.best.step, found.best.loss) == (best, losses[best])
    assert found.better() is found.best
    ended_there = make(steps=best, total_steps=400, lr=0.1)
    ended_there.run()
    for key, value in ended_there.network.tensors().items():
        assert torch.equal(value, found.best.tensors[key]), key
    assert any(
        not torch.equal(value, found.best.tensors[key])
        for key, value in loop.network.tensors().items()
    )


def test_the_untrained_model_is_told_but_never_the_best():
    watch = monitor([0.1, 0.5, 0.4, 0.45])
    watch.begin()
    drive(watch, 30)
    assert watch.rows[0] == (0, pytest.approx(0.1))
    assert watch.best.step == 20 and watch.better() is watch.best


def test_the_last_state_is_not_kept_twice():
    watch = monitor([0.5, 0.4, 0.3])
    watch.begin()
    drive(watch, 20)
    watch.finish(20)
    assert watch.best.step == 20 and watch.better() is None
    assert len(watch.rows) == 3


def test_an_end_between_two_looks_is_looked_at():
    watch = monitor([0.5, 0.4, 0.6])
    watch.begin()
    drive(watch, 15)
    watch.finish(15)
    assert [step for step, _ in watch.rows] == [0, 10, 15]
    assert watch.better().step == 10


def test_patience_ends_a_run_after_so_many_looks_without_a_better_one():
    """The best is the second look, at step 20; three looks later it is 50."""
    told = []
    watch = monitor([0.9, 0.5, 0.4, 0.41, 0.42, 0.43, 0.1], patience=3, told=told)
    watch.begin()
    assert drive(watch, 400) == 50
    assert "No better validation loss for 3 validations" in watch.stopped
    assert watch.better().step == 20
    assert [event.text for event in told if isinstance(event, Warned)] == [watch.stopped]


def test_patience_is_off_at_first_and_counts_what_came_before():
    series = [0.9, 0.5, 0.6]
    watch = monitor(series)
    watch.begin()
    assert drive(watch, 300) == 300 and not watch.stopped
    watch = monitor([0.6], patience=4)
    rows = ((0, 0.9), (10, 0.5), (20, 0.6), (30, 0.6))
    watch.begin(State(30, 300, 0, {}, {}, losses=(0.1,) * 30, validation=rows))
    assert drive(watch, 300, first=31) == 50


@pytest.mark.parametrize("cut", [3, 4, 11])
def test_a_run_that_was_cut_off_judges_as_the_whole_one(cut):
    states = []
    whole_loop, whole, _ = watched(kept=states)
    loop, found, told = watched(state=states[cut], end=12)
    assert loop.losses == whole_loop.losses and loop.end == 12
    assert (found.rows, found.looked, found.stopped) == (whole.rows, whole.looked, whole.stopped)
    assert (found.best.step, found.best.loss) == (whole.best.step, whole.best.loss)
    assert all(torch.equal(v, whole.best.tensors[k]) for k, v in found.best.tensors.items())
    assert [e.step for e in told if isinstance(e, Validated)] == [s for s in (4, 8, 12) if s > cut]


def test_who_goes_on_after_the_end_of_patience_has_it_anew():
    rows = ((0, 0.9), (10, 0.5), (20, 0.6), (30, 0.6))
    watch = monitor([0.7], patience=2)
    watch.begin(State(30, 300, 0, {}, {}, losses=(0.1,) * 30, validation=rows))
    assert drive(watch, 300, first=31) == 50


def test_a_better_look_counts_anew():
    losses = [0.9, 0.5, 0.51, 0.52, 0.4, 0.41, 0.42, 0.43]
    watch = monitor(losses, patience=3)
    watch.begin()
    assert drive(watch, 300) == 70


def test_a_diverging_run_ends_and_the_best_is_from_before():
    """0.1 for 200 steps, then 10: the 25th of them lifts the median, and it stays so for 50 steps."""
    count = iter(range(10**6))
    watch = monitor(weights=lambda: {"w": torch.tensor([float(next(count))])})
    watch.begin()
    ended = drive(watch, 900, loss=lambda step: 0.1 + step * 1e-9 if step <= 200 else 10.0)
    assert ended == 200 + 25 + 49
    watch.finish(ended)
    assert "diverges" in watch.stopped and "median loss is 10" in watch.stopped
    assert watch.better().step <= 200
    assert watch.measure == "median loss"


@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_run_is_not_ended_nor_its_last_state_called_worse(seed):
    """Log-normal losses: the median of 50 is off by 18 %, the least of twenty such by 40 %."""
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.randn(1000, generator=generator).exp() * 0.05).tolist()
    watch = monitor(validate_every=50)
    watch.begin()
    assert drive(watch, 999, loss=lambda step: losses[step]) == 999
    watch.finish(999)
    assert watch.best.step >= 50 and watch.better() is None
    drive(watch, 40, loss=10 * MARGIN, first=1000, total=5000)
    watch.finish(1039)
    assert watch.better() is watch.best


def test_the_last_step_is_the_end_and_no_stop():
    watch = monitor([0.5, 0.4, 0.6], patience=1)
    watch.begin()
    assert drive(watch, 20, total=20) == 20
    assert not watch.stopped


def test_no_gradient_at_all_is_an_error_that_says_what_to_check():
    watch = monitor()
    drive(watch, ZERO_STEPS - 1, norm=0.0)
    drive(watch, 1, norm=1e-30, first=ZERO_STEPS)
    drive(watch, ZERO_STEPS - 1, norm=0.0, first=ZERO_STEPS + 1)
    with pytest.raises(
        NothingLearned, match=f"0 for {ZERO_STEPS} steps up to step 20.*blocks.*mask"
    ):
        drive(watch, 1, norm=0.0, first=20)


def test_a_model_that_does_not_hear_its_adapter_is_stopped():
    """A real loop whose denoiser multiplies the network by 0."""
    loop = make(steps=50, preserve=0.0)
    real = loop.denoiser.network.forward
    loop.denoiser.network.forward = lambda *args: real(*args) * 0
    loop.monitor = monitor()
    with pytest.raises(NothingLearned):
        loop.run()
    assert loop.step == ZERO_STEPS


def test_weights_that_are_not_finite_are_not_kept():
    weights = [torch.tensor([1.0]), torch.tensor([math.nan])]
    watch = monitor([0.9, 0.5, 0.4], weights=lambda: {"w": weights.pop(0)})
    watch.begin()
    drive(watch, 20)
    assert watch.best.step == 10


def test_a_loss_that_is_no_number_is_never_the_best():
    watch = monitor([0.9, 0.5, math.nan, math.nan], patience=2)
    watch.begin()
    assert drive(watch, 100) == 30
    assert watch.best.step == 10 and watch.better() is watch.best


def test_what_a_nan_ends_leaves_the_best_of_another_step():
    watch = monitor([0.9, 0.5, 0.6])
    watch.begin()
    drive(watch, 20)
    assert watch.worth_keeping(25, is_diverged=True).step == 10
    assert watch.worth_keeping(10, is_diverged=True) is None
    assert monitor().worth_keeping(3, is_diverged=True) is None
    assert Diverged.__mro__[1] is RuntimeError


def test_other_weights_are_read_under_their_context_and_decide():
    """``ema`` halves the weights while it is applied; it comes last, so it is what is kept."""
    weights, told = {"w": torch.tensor([4.0])}, []

    @contextlib.contextmanager
    def applied():
        weights["w"] *= 0.5
        try:
            yield
        finally:
            weights["w"] *= 2

    plan = Plan(steps=100, validate_every=10)

    def validator():
        return ((1.0, float(weights["w"])),)

    def change():
        return Change({"out": float(weights["w"])})

    copy = lambda: {"w": weights["w"].clone()}  # noqa: E731
    watch = Monitor(copy, plan, told.append, validator, change)
    watch.readings["ema"] = applied
    watch.begin()
    drive(watch, 10)
    assert [(e.step, e.weights, e.loss) for e in told] == [
        (0, "raw", 4.0), (0, "ema", 2.0), (10, "raw", 4.0), (10, "ema", 2.0),
    ]  # fmt: skip
    assert watch.rows == [(0, 2.0), (10, 2.0)]
    assert watch.best.tensors["w"].item() == 2.0 and weights["w"].item() == 4.0
    assert watch.last.blocks == {"out": 2.0} and told[2].change == {}


@pytest.mark.parametrize("is_known", [False, True])
def test_steps_that_are_slower_for_a_known_reason_are_no_warning(is_known):
    told = []
    watch = monitor(told=told)
    for step in range(1, 201):
        if is_known and step == 101:
            watch.slower()
        watch(Progress(step, 1000, 0.1, 1e-4, 1.0, 1.0 if step <= 100 else 3.0))
    slow = [event for event in told if isinstance(event, Warned) and "A step takes" in event.text]
    assert bool(slow) is not is_known
