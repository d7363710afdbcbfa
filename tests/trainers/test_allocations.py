# SPDX-License-Identifier: Apache-2.0
"""Counted bytes against sums by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from graft.trainers.allocations import Allocations, held, peak

MIB = 2**20


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_lives_at_once_is_counted_and_views_and_writes_are_not(device):
    x = torch.zeros(MIB // 4, device=device)  # 1 MiB, from before

    def work():
        a = x + 1  # 1
        b = a * 2  # 2
        b.mul_(3).view(2, -1).t()
        del a  # 1
        c = torch.cat([b, b])  # 3
        del b
        x[: MIB // 8] + 1  # 2.5: gone at once
        return c

    assert peak(work, device) == 3 * MIB


def test_what_is_alive_at_the_end_is_known():
    with Allocations() as counted:
        kept = torch.zeros(MIB)
        assert counted.live == 4 * MIB
        torch.zeros(MIB)
    assert counted.live == 4 * MIB and counted.peak == 8 * MIB
    del kept
    assert counted.live == 0


def stack(depth, width):
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in range(depth)]
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("depth", [2, 5])
def test_the_peak_of_a_chain_by_hand(device, depth):
    """Frozen linear + sigmoid, x [n, n] with a gradient; n n fp32 is u.

    A frozen linear keeps nothing of its input, a sigmoid its own output: forward ends with one u a layer. The most is
    there while a sigmoid is computed (its input is not gone yet) and in every backward of one: the outputs from there
    down, the gradient that came in and the one that goes out. Both are depth + 1 for the last layer; sum() hands an
    expanded scalar back.
    """
    n = 256
    net = stack(depth, n).to(device).requires_grad_(False)
    x = torch.zeros(n, n, device=device, requires_grad=True)
    u = 4 * n * n

    def work():
        net(x).sum().backward()
        x.grad = None

    assert peak(work, device) == pytest.approx((depth + 1) * u, abs=64)


def test_recomputed_blocks_cost_their_input_only():
    """Four blocks of three layers: an input of one u a block is kept, of which the first is x, from before.

    The last block is recomputed when the three other inputs are there: its three outputs and, as above, one more.
    """
    n = 256
    net = nn.ModuleList([stack(3, n) for _ in range(4)]).requires_grad_(False)
    x = torch.zeros(n, n, requires_grad=True)

    def forward(h, recompute, depth=0):
        if depth == len(net):
            return h
        block = net[depth]
        h = checkpoint(block, h, use_reentrant=False) if recompute else block(h)
        return forward(h, recompute, depth + 1)

    def work(recompute):
        forward(x, recompute).sum().backward()
        x.grad = None

    u = 4 * n * n
    assert peak(lambda: work(False)) == pytest.approx(13 * u, abs=64)
    assert peak(lambda: work(True)) == pytest.approx((3 + 4) * u, abs=u + 4096)


def test_held_counts_shared_storage_once():
    x = torch.zeros(100)
    assert held([x, x[:10], x.view(10, 10), torch.zeros(5)]) == 400 + 20
