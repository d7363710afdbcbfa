# SPDX-License-Identifier: Apache-2.0
"""What every optimizer and schedule must satisfy, over the registries."""

import math

import pytest
import torch

from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES, Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.schedules.constant import Constant
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.optimizers.schedules.linear import Linear
from graft.trainers.state import State
from graft.trainers.stepping import Stepper
from tests.conftest import ROOT

CPU = torch.device("cpu")
VECTOR, MATRIX = torch.tensor([1.0, -2.0]), torch.tensor([[0.5, -1.0, 1.5], [2.0, 0.25, -0.75]])
STEPS = 2000


def runs_here(name):
    try:
        Optimizer(OPTIMIZERS.get(name)()).check(CPU)
    except ValueError:
        return False
    return True


HERE = [name for name in OPTIMIZERS.names() if runs_here(name)]
every = pytest.mark.parametrize("name", HERE)


def algorithm(name, **values):
    """Settings with a rate that is usual for the algorithm, large enough for a small problem."""
    (low, high), own = OPTIMIZERS.get(name).usual, OPTIMIZERS.get(name)().lr
    return OPTIMIZERS.parse(name, **{"lr": own if low > 0.05 else min(0.05, high), **values})


def parameters(start=0.0):
    """A vector and two matrices, one of them of the text encoders."""
    shapes = {"a.down": VECTOR, "a.up": MATRIX, "text_encoders.b.up": MATRIX}
    return {name: torch.nn.Parameter(torch.full_like(t, start)) for name, t in shapes.items()}


def descend(stepper, steps, total, first=0):
    """Steps of sum (p - target)^2 as the loop takes them."""
    for step in range(first, first + steps):
        stepper.algorithm.zero_grad()
        targets = {"a.down": VECTOR, "a.up": MATRIX, "text_encoders.b.up": MATRIX}
        sum(((p - targets[n]) ** 2).sum() for n, p in stepper.parameters.items()).backward()
        stepper.begin(step, total)
        stepper.step()
    return stepper


def values(stepper):
    return {name: p.detach().clone() for name, p in stepper.parameters.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@every
def test_a_quadratic_reaches_its_minimum(name):
    settings = Optimizer(algorithm(name, weight_decay=0.0), Linear())
    stepper = descend(Stepper(settings, parameters()), STEPS, STEPS)
    with stepper.averaged():
        for key, target in (("a.down", VECTOR), ("a.up", MATRIX)):
            found = stepper.parameters[key].detach()
            torch.testing.assert_close(found, target, atol=0.02, rtol=0)


@every
def test_a_rate_of_zero_changes_nothing(name):
    """Neither at the start nor with momentum and decay under way, Prodigy's library notwithstanding."""
    stepper = Stepper(Optimizer(algorithm(name, weight_decay=0.5), Linear()), parameters(0.3))
    start = values(stepper)
    descend(stepper, 1, 10, first=9)
    assert equal(values(stepper), start)
    descend(stepper, 5, 10)
    moved = values(stepper)
    assert not equal(moved, start)
    descend(stepper, 3, 10, first=9)
    assert equal(values(stepper), moved)


@pytest.mark.parametrize(
    "name,decay",
    [
        (name, decay)
        for name in HERE
        for decay in (0.0, 0.9)
        if not (decay and getattr(OPTIMIZERS.get(name), "averages", False))
    ],
)
@pytest.mark.parametrize("cut", [1, 3])
def test_resuming_equals_not_stopping(name, decay, cut):
    settings = Optimizer(algorithm(name), Cosine(), ema_decay=decay, text_weight_decay=0.3)
    whole = descend(Stepper(settings, parameters()), 6, 6)
    head = descend(Stepper(settings, parameters()), cut, 6)
    state = State(cut, 6, 0, {}, **head.state())
    again = {key: torch.nn.Parameter(value) for key, value in values(head).items()}
    descend(head, 1, 6, first=cut)  # what the state holds are copies
    tail = Stepper(settings, again)
    tail.load(state)
    descend(tail, 6 - cut, 6, first=cut)
    assert equal(values(whole), values(tail))
    with whole.averaged(), tail.averaged():
        assert equal(values(whole), values(tail))


@every
def test_groups_are_honoured(name):
    """The text encoders' decay moves them alone, and their stop leaves the others alone."""
    kind = algorithm(name, weight_decay=0.0)
    plain = descend(Stepper(Optimizer(kind), parameters(0.3)), 5, 10)
    decayed = descend(Stepper(Optimizer(kind, text_weight_decay=5.0), parameters(0.3)), 5, 10)
    one, other = values(plain), values(decayed)
    moved = {key for key in one if not torch.equal(one[key], other[key])}
    assert "text_encoders.b.up" in moved
    assert moved == {"text_encoders.b.up"} or getattr(kind, "one_lr", False)


@every
def test_a_part_that_has_stopped_does_not_move_and_the_others_do(name):
    settings = Optimizer(algorithm(name, weight_decay=0.5), text_stop=0.5)
    stepper = descend(Stepper(settings, parameters(0.3)), 5, 10)
    pivot = values(stepper)
    descend(stepper, 5, 10, first=5)
    end = values(stepper)
    assert torch.equal(end["text_encoders.b.up"], pivot["text_encoders.b.up"])
    assert not torch.equal(end["a.up"], pivot["a.up"])
    descend(stepper, 2, 10, first=12)  # past the plan, too
    assert torch.equal(values(stepper)["text_encoders.b.up"], pivot["text_encoders.b.up"])


@every
def test_a_state_of_another_optimizer_is_refused(name):
    other = "adamw" if name != "adamw" else "lion"
    state = descend(Stepper(Optimizer(algorithm(other)), parameters()), 1, 2).state()
    with pytest.raises(ValueError, match=f"optimizer {other}, not {name}"):
        Stepper(Optimizer(algorithm(name)), parameters()).load(State(1, 2, 0, {}, **state))


@every
def test_the_own_rate_is_usual_and_its_state_is_fp32(name):
    kind = OPTIMIZERS.get(name)
    assert kind.usual[0] <= kind().lr <= kind.usual[1]
    stepper = descend(Stepper(Optimizer(algorithm(name)), parameters()), 2, 4)
    for entries in stepper.state()["optimizer"].values():
        for value in entries.values():
            assert not isinstance(value, torch.Tensor) or value.dtype == torch.float32


@pytest.mark.parametrize("family,registry", [("", OPTIMIZERS), ("schedules", SCHEDULES)])
def test_every_member_is_named_in_a_test_of_its_own(family, registry):
    folder = ROOT / "tests" / "trainers" / "optimizers" / family
    for name in registry.names():
        assert (folder / f"test_{name.replace('-', '_')}.py").is_file(), name


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_schedule_stays_within_zero_and_one(name, warmup):
    schedule = SCHEDULES.parse(name, warmup=warmup)
    factors = [schedule.factor(step, 50) for step in range(50)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[: warmup + 1] == pytest.approx(
        [(step + 1) / (warmup + 1) for step in range(warmup + 1)]
    )
    assert factors[warmup] == 1.0
    assert [schedule.factor(step, 3) for step in range(3)]  # shorter than its warm-up


@pytest.mark.parametrize(
    "name", [n for n in SCHEDULES.names() if "floor" in SCHEDULES.get(n).__dataclass_fields__]
)
def test_schedule_ends_at_its_floor(name):
    for floor in (0.0, 0.25, 1.0):
        schedule = SCHEDULES.parse(name, warmup=3, floor=floor)
        assert schedule.factor(49, 50) == pytest.approx(floor, abs=1e-12)
        assert min(schedule.factor(step, 50) for step in range(3, 50)) >= floor - 1e-12


def test_past_the_plan_the_last_value_holds():
    optimizer = Optimizer(AdamW(lr=2.0), Cosine(floor=0.25))
    assert optimizer.lr(99, 100) == optimizer.lr(150, 100) == pytest.approx(0.5)
    assert Optimizer(AdamW(lr=2.0), Constant(warmup=1)).lr(0, 100) == pytest.approx(1.0)
    assert math.isclose(Optimizer(AdamW(lr=2.0), Linear()).lr(50, 101), 1.0)
