# SPDX-License-Identifier: Apache-2.0
"""What blocks keep and cost, on a network whose figures are counted by hand."""

import pytest
import torch
from torch import nn


class Block(nn.Module):
    """``x + two(tanh(one(x)))`` on ``[3, 8]``."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.two(torch.tanh(self.one(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_bytes_and_operations_by_hand():
    """Of a block's forward, autograd keeps x (which a checkpoint keeps, too), the weights, and tanh's output
    ``[3, 16]``, which the second layer takes: 3 * 16 * 4 bytes. Two products of 3 x 8 x 16 are 2 * 2 * 384 operations.
    """
    from graft.host.memory.block_costs import block_costs

    network = Network()
    ran = []
    found = block_costs(network, network.blocks, lambda: ran.append(network(torch.ones(3, 8))))
    assert list(found.saved) == [3 * 16 * 4] * 3
    assert list(found.work) == [2 * 2 * 3 * 8 * 16] * 3
    assert found.order == [0, 1, 2]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with pytest.raises(RuntimeError, match="only looked at"):
        ran[0].sum().backward()  # nothing was kept


def test_a_block_before_the_first_trained_weight_keeps_nothing():
    from graft.host.memory.block_costs import block_costs

    network = Network().requires_grad_(False)
    network.blocks[1].two.requires_grad_(True)
    found = block_costs(network, network.blocks, lambda: network(torch.ones(3, 8)))
    # The second's tanh is the input of what is trained; the third's gradient passes through.
    assert list(found.saved) == [0, 3 * 16 * 4, 3 * 16 * 4]
    assert found.order[-1] == 0
