# SPDX-License-Identifier: Apache-2.0
"""Unshifted time: a flow model's own shift of 3 moves the middle to 0.75, and this law keeps it at 0.5."""

import torch

from graft.trainers.objectives.noise.model import ModelTable
from graft.trainers.objectives.noise.uniform import Uniform
from tests.trainers.toy import Toy


def test_the_shift_of_a_flow_model_does_not_count():
    toy, u = Toy("flow"), torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    t = torch.arange(1, 1001) / 1000
    toy.sigmas = 3 * t / (1 + 2 * t)
    assert abs(float(ModelTable().quantile(u, toy)[1]) - 0.75) < 1e-3
    assert torch.equal(Uniform().quantile(u, toy), u.float())


def test_other_families_have_their_table():
    toy, u = Toy("eps"), torch.rand(50, dtype=torch.float64)
    assert torch.equal(Uniform().quantile(u, toy), ModelTable().quantile(u, toy))
