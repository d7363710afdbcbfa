# SPDX-License-Identifier: Apache-2.0
"""Schedule-free AdamW: Algorithm 1 in fp64, and where its average appears."""

import math

import pytest
import torch

from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.schedule_free_adamw import ScheduleFreeAdamW
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.stepping import Stepper


def test_five_steps_by_the_algorithm():
    """One number, f(y) = (y - 3)^2 / 2, in Python's fp64; the learning rate rises, so that c is not 1 / t."""
    b1, b2, decay = 0.9, 0.99, 0.1
    x = z = 0.5
    v = squares = 0.0
    rates = [0.02, 0.04, 0.06, 0.06, 0.06]
    for t, lr in enumerate(rates, 1):
        y = (1 - b1) * z + b1 * x
        g = y - 3
        v = b2 * v + (1 - b2) * g * g
        gamma = lr * math.sqrt(1 - b2**t)
        z = z - gamma * g / (math.sqrt(v) + 1e-8) - gamma * decay * y
        squares += gamma**2
        c = gamma**2 / squares
        x = (1 - c) * x + c * z
    p = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer = ScheduleFreeAdamW(beta2=0.99, weight_decay=decay).build([p])
    for lr in rates:
        optimizer.param_groups[0]["lr"] = lr
        p.grad = p.detach() - 3
        optimizer.step()
    assert float(p.detach()) == pytest.approx((1 - b1) * z + b1 * x, rel=1e-6)
    with optimizer.averaged():
        assert float(p.detach()) == pytest.approx(x, rel=1e-6)
    assert x != pytest.approx(z, rel=1e-2)


def test_the_first_step_is_that_of_a_sign():
    """v = (1-b2) g^2 and gamma = lr sqrt(1-b2), so z = p - lr sign(g), c = 1, and x = y = z."""
    p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    p.grad = torch.tensor([0.3, -5.0])
    ScheduleFreeAdamW(lr=0.1, weight_decay=0.0).build([p]).step()
    assert p.tolist() == pytest.approx([0.9, -0.9], rel=1e-5)


def test_the_average_leaves_the_training_untouched():
    p, q = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    steppers = [Stepper(Optimizer(ScheduleFreeAdamW(lr=0.01)), {"a": each}) for each in (p, q)]
    for step in range(6):
        for stepper, each in zip(steppers, (p, q), strict=True):
            each.grad = each.detach() - torch.tensor([1.0, 2.0, -1.0])
            stepper.begin(step, 6)
            stepper.step()
        with pytest.raises(KeyError), steppers[0].averaged():  # left by an error, too
            assert step == 0 or not torch.equal(p, q)
            raise KeyError
    assert torch.equal(p, q)


def test_it_averages_itself_and_wants_no_schedule():
    with pytest.raises(
        ValueError, match=r"ema_decay is 0.99 .*schedule-free-adamw, whose result is an average"
    ):
        Optimizer(ScheduleFreeAdamW(), ema_decay=0.99)
    assert (
        "meant for the schedule constant" in Optimizer(ScheduleFreeAdamW(), Cosine()).notes([])[0]
    )
