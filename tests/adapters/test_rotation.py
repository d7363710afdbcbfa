# SPDX-License-Identifier: Apache-2.0
"""Rotations at any strength: by hand, and against SciPy's exponential of a logarithm."""

import math

import pytest
import torch

from graft.adapters.rotation import cayley, power, skew


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0, -1.0, 2.0, 3.5])
def test_two_rows_turn_by_strength_times_the_angle(strength):
    """t in Q = [[0, t], [-t, 0]] is a turn by 2 arctan t; t = tan(pi / 12) is one by 30 degrees."""
    t = math.tan(math.pi / 12)
    q = torch.tensor([[0.0, t], [-t, 0.0]])
    angle = strength * math.pi / 6
    made = torch.eye(2) + power(q, strength)
    wanted = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    torch.testing.assert_close(made, torch.tensor(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 5, 16])
def test_powers_are_those_of_scipy_and_of_the_group(size):
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(size)
    q = skew(0.4 * torch.randn((3, size, size), generator=generator), 0.0)
    unit = torch.eye(size)
    whole = unit + power(q, 1.0)
    for strength in (-1.0, 0.3, 0.5, 1.7):
        made = unit + power(q, strength)
        torch.testing.assert_close(made @ made.mT, unit.expand_as(made), rtol=0, atol=2e-6)
        for block, turned in zip(q.double().numpy(), made, strict=True):
            r = (unit.double().numpy() + block) @ linalg.inv(unit.double().numpy() - block)
            wanted = torch.from_numpy(linalg.expm(strength * linalg.logm(r).real))
            torch.testing.assert_close(turned.double(), wanted, rtol=0, atol=2e-6)
    half = unit + power(q, 0.5)
    torch.testing.assert_close(half @ half, whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(unit + power(q, -1.0), whole.mT, rtol=0, atol=2e-6)
    torch.testing.assert_close(unit + power(q, 2.0), whole @ whole, rtol=0, atol=2e-6)
    assert not power(q, 0.0).any()


def test_the_limit_is_that_of_all_blocks():
    blocks = torch.tensor([[[0.0, 3.0], [0.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]])
    q = skew(blocks, 5.0)  # |Q|^2 = 2 (9 + 16) = 50
    assert float(torch.linalg.vector_norm(q)) == pytest.approx(5.0)
    assert torch.equal(skew(blocks, 8.0), blocks - blocks.mT)
    torch.testing.assert_close(
        cayley(q), (torch.eye(2) + q) @ torch.linalg.inv(torch.eye(2) - q) - torch.eye(2)
    )
