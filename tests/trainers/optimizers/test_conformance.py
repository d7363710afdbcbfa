# SPDX-License-Identifier: Apache-2.0
"""What every optimizer and schedule must satisfy, over the registries."""

import math

import pytest
import torch

from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES, Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.schedules.constant import Constant
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.state import optimizer_state, restore_optimizer


def descend(algorithm, steps, p, optimizer=None):
    optimizer = optimizer or algorithm.build([p])
    for _ in range(steps):
        optimizer.zero_grad()
        ((p - torch.tensor([1.0, -2.0])) ** 2).sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_quadratic_reaches_its_minimum(name):
    p = torch.nn.Parameter(torch.zeros(2))
    descend(OPTIMIZERS.parse(name, lr=0.05, weight_decay=0.0), 400, p)
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_resuming_equals_not_stopping(name):
    algorithm = OPTIMIZERS.parse(name, lr=0.05)
    whole, cut = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    descend(algorithm, 6, whole)
    state = optimizer_state(descend(algorithm, 3, cut), {"p": cut})
    again = torch.nn.Parameter(cut.detach().clone())
    fresh = algorithm.build([again])
    restore_optimizer(fresh, {"p": again}, state)
    descend(algorithm, 3, again, fresh)
    assert torch.equal(whole, again)


def test_one_step_of_adamw_by_hand():
    """m = g (1-b1), v = g^2 (1-b2); bias-corrected m/sqrt(v) = sign(g): p = p (1 - lr wd) - lr sign(g)."""
    p = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    descend(AdamW(lr=0.1, weight_decay=0.5), 1, p)
    torch.testing.assert_close(
        p.detach(), torch.tensor([2.0 * 0.95 - 0.1, -3.0 * 0.95 + 0.1]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedule_stays_within_zero_and_one(name):
    schedule = SCHEDULES.parse(name, warmup=5)
    factors = [schedule.factor(step, 50) for step in range(50)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[:5] == sorted(factors[:5])
    assert factors[4] == pytest.approx(5 / 6)
    assert factors[5] == pytest.approx(1.0)


def test_cosine_values():
    cosine = Cosine(warmup=0)
    assert cosine.factor(0, 101) == 1.0
    assert cosine.factor(50, 101) == pytest.approx(0.5)
    assert cosine.factor(25, 101) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert cosine.factor(100, 101) == pytest.approx(0.0, abs=1e-12)
    assert Cosine(floor=0.1).factor(100, 101) == pytest.approx(0.1)


def test_past_the_plan_the_last_value_holds():
    optimizer = Optimizer(AdamW(lr=2.0), Cosine(floor=0.25))
    assert optimizer.lr(99, 100) == optimizer.lr(150, 100) == pytest.approx(0.5)
    assert Optimizer(AdamW(lr=2.0), Constant(warmup=1)).lr(0, 100) == pytest.approx(1.0)
