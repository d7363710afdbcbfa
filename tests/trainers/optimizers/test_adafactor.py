# SPDX-License-Identifier: Apache-2.0
"""Adafactor by hand."""

import pytest
import torch

from graft.trainers.optimizers.adafactor import Adafactor


def test_one_step_of_a_vector_by_hand():
    """The first mean of squares is g^2, so the update is sign(g), whose size 1 is not clipped."""
    p = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    p.grad = torch.tensor([0.5, -7.0])
    Adafactor(lr=0.1, weight_decay=0.5).build([p]).step()
    assert p.tolist() == pytest.approx([2 * 0.95 - 0.1, -3 * 0.95 + 0.1])


def test_one_step_of_a_matrix_by_hand():
    """V = row col / mean(row): for g = [[1, 2], [3, 4]] the rows' means are 2.5, 12.5, the columns' 5, 10.

    V = [[2.5*5, 2.5*10], [12.5*5, 12.5*10]] / 7.5, u = g / sqrt(V), and u / max(1, rms(u)) is the update.
    """
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    Adafactor(lr=0.1, weight_decay=0.0).build([p]).step()
    v = [2.5 * 5 / 7.5, 2.5 * 10 / 7.5, 12.5 * 5 / 7.5, 12.5 * 10 / 7.5]
    u = [g / x**0.5 for g, x in zip((1, 2, 3, 4), v, strict=True)]
    rms = max(1.0, (sum(x * x for x in u) / 4) ** 0.5)
    assert p.flatten().tolist() == pytest.approx([-0.1 * x / rms for x in u], rel=1e-5)


def test_a_matrix_of_zeros_moves_at_the_full_rate():
    """A LoRA's up matrix: torch's own Adafactor would move it a thousand times less."""
    p, q = (torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(2))
    p.grad = q.grad = torch.ones(4, 4)
    Adafactor(lr=0.01, weight_decay=0.0).build([p]).step()
    torch.optim.Adafactor([q], lr=0.01).step()
    assert float(p.detach().abs().mean()) == pytest.approx(0.01)
    assert float(q.detach().abs().mean()) == pytest.approx(0.01 * 1e-3)


def test_the_state_of_a_matrix_is_its_rows_and_columns():
    p = torch.nn.Parameter(torch.zeros(300, 200))
    p.grad = torch.ones(300, 200)
    optimizer = Adafactor().build([p])
    optimizer.step()
    numbers = sum(v.numel() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor))
    assert numbers <= 300 + 200 + 1
