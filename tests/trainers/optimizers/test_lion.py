# SPDX-License-Identifier: Apache-2.0
"""Lion by hand."""

import pytest
import torch

from graft.trainers.optimizers.lion import Lion


def test_two_steps_by_hand():
    """c = b1 m + (1-b1) g, p = p (1 - lr wd) - lr sign(c), then m = b2 m + (1-b2) g.

    Step 1: m = 0, g = [1, -1, 0]: sign(c) = [1, -1, 0]; m becomes [0.01, -0.01, 0].
    Step 2: g = [-0.05, -2, 1]: c = [0.009 - 0.005, -0.009 - 0.2, 0.1], signs [1, -1, 1].
    """
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, -1.0]))
    optimizer = Lion(lr=0.1, weight_decay=0.5).build([p])
    p.grad = torch.tensor([1.0, -1.0, 0.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([0.95 - 0.1, 1.9 + 0.1, -0.95])
    p.grad = torch.tensor([-0.05, -2.0, 1.0])
    optimizer.step()
    assert p.tolist() == pytest.approx(
        [0.75 * 0.95 + 0.1 * 0.95 - 0.1, 2 * 0.95 + 0.1, -0.95 * 0.95 - 0.1]
    )
    m = optimizer.state[p]["exp_avg"].tolist()
    assert m == pytest.approx([0.0099 - 0.0005, -0.0099 - 0.02, 0.01])


def test_momentum_outlives_a_gradient_that_turns():
    """After ten steps of g = 1, m = 1 - 0.99^10 = 0.0956; a gradient of -0.5 still gives the sign of 1.

    c = 0.9 * 0.0956 - 0.1 * 0.5 = 0.036 > 0.
    """
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = Lion(lr=0.1, weight_decay=0.0).build([p])
    for g in [1.0] * 10 + [-0.5]:
        p.grad = torch.tensor([g])
        optimizer.step()
    assert float(p.detach()) == pytest.approx(-1.1)
