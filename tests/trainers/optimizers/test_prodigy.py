# SPDX-License-Identifier: Apache-2.0
"""Prodigy: the library's trajectory bit for bit, its formulae by hand, and its trap with groups that rest."""

import math

import pytest
import torch

from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.prodigy import Prodigy
from graft.trainers.optimizers.schedules.cosine_restarts import CosineRestarts
from tests.trainers import oracles
from tests.trainers.test_loop import make

TARGET = torch.tensor([1.0, -2.0])


def test_through_the_loop_it_is_the_library_bit_for_bit(capsys):
    gap, told, group = oracles.prodigy_gap(make)
    assert gap == 0
    assert capsys.readouterr().out.count("decoupled") == 1  # the library's; ours says nothing
    assert group["d"] > 1e-4
    assert told[-2] > 0
    assert told[-1] == group["d"] * group["lr"] == 0.0  # the cosine's last step


def test_ten_steps_by_hand():
    """Algorithm 4 in fp64 with numbers, the gradient of sum (p - target)^2 / 2, safeguarded warm-up.

    Bias correction as Adam's; beta3 = sqrt(beta2); d is replaced at once while it is d0.
    """
    b1, b2, d0, decay = 0.9, 0.99, 0.01, 0.01
    b3, p, p0 = math.sqrt(b2), [0.5, 0.25], [0.5, 0.25]
    m, v, s, d, d_max, numerator = [0.0] * 2, [0.0] * 2, [0.0] * 2, d0, d0, 0.0
    for k in range(10):
        g = [p[i] - float(TARGET[i]) for i in range(2)]
        dlr = d * math.sqrt(1 - b2 ** (k + 1)) / (1 - b1 ** (k + 1))
        numerator = b3 * numerator + d / d0 * dlr * sum(g[i] * (p0[i] - p[i]) for i in range(2))
        m = [b1 * m[i] + d * (1 - b1) * g[i] for i in range(2)]
        v = [b2 * v[i] + d * d * (1 - b2) * g[i] ** 2 for i in range(2)]
        s = [b3 * s[i] + d / d0 * d * g[i] for i in range(2)]
        d_hat = numerator / sum(map(abs, s))
        d = max(d, d_hat) if d == d0 else d
        d_max = max(d_max, d_hat)
        d = d_max
        p = [p[i] * (1 - decay * dlr) - dlr * m[i] / (math.sqrt(v[i]) + d * 1e-8) for i in range(2)]
    ours = torch.nn.Parameter(torch.tensor(p0))
    optimizer = Prodigy(d0=d0).build([ours])
    for _ in range(10):
        ours.grad = ours.detach() - TARGET
        optimizer.step()
    assert d > d0
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-5)
    assert ours.tolist() == pytest.approx(p, rel=1e-5)


def test_the_library_alone_would_move_a_group_at_rate_zero():
    """Why a group that rests has no gradient: the library steps it along its last momentum and decays it."""
    assert oracles.moved_at_rest(Prodigy(d0=1e-2)) == 0
    assert oracles.moved_at_rest(Prodigy(d0=1e-2), is_ours=False) > 1e-3


@pytest.mark.parametrize(
    "values,name",
    [
        ({"text_lr": 0.5}, "text_lr"),
        ({"embedding_lr": 2.0}, "embedding_lr"),
        ({"loraplus_ratio": 16.0}, "loraplus_ratio"),
    ],
)
def test_unequal_rates_are_refused_with_both_sides_and_the_way_out(values, name):
    with pytest.raises(
        ValueError, match=f"learning_rate is 1 and {name} is .*leave {name} at .*or choose adamw"
    ):
        Optimizer(Prodigy(), **values)
    Optimizer(Prodigy(), text_lr=1.0, embedding_lr=1.0)
    Optimizer(AdamW(), **values)


def test_what_makes_no_sense_is_said():
    (note,) = Optimizer(Prodigy(lr=1e-4)).notes(["a.up"])
    assert "learning_rate 0.0001 is unusual for prodigy" in note
    assert "1 is a start" in note
    (note,) = Optimizer(Prodigy(), CosineRestarts()).notes(["a.up"])
    assert "meant for the schedule constant or cosine" in note
    assert Optimizer(Prodigy()).notes(["a.up"]) == []
    assert "between 1e-07 and 0.02" in Optimizer(AdamW(lr=1.0)).notes(["a.up"])[0]


def test_a_shrinking_growth_rate_is_refused():
    with pytest.raises(ValueError, match="growth_rate is 0.5; it must be 0"):
        Prodigy(growth_rate=0.5)
