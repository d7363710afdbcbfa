# SPDX-License-Identifier: Apache-2.0
"""OFT: R is orthogonal, the weight keeps its singular values block by block, and the constraint holds."""

import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.oft import OFT

from .test_lora import INPUTS, base, randomize


def turned(layer):
    return layer.turn().detach() + torch.eye(layer.blocks.shape[-1])


@pytest.mark.parametrize("constraint", [0.0, 0.7])
def test_r_is_orthogonal_and_by_cayley(constraint):
    model = nn.Sequential(nn.Linear(12, 20)).requires_grad_(False)
    attached = Attached(model, OFT(4, "all", constraint=constraint), 0)
    randomize(attached)
    layer = attached.layers["0"]
    r = turned(layer)
    torch.testing.assert_close(r @ r.mT, torch.eye(4).expand(5, 4, 4), rtol=0, atol=2e-6)
    q = (layer.blocks - layer.blocks.mT).detach()
    if constraint:
        assert float(q.norm()) > constraint
        q = q * constraint / q.norm()
    unit = torch.eye(4)
    torch.testing.assert_close(r, (unit + q) @ (unit - q).inverse(), rtol=1e-4, atol=1e-5)


def test_a_block_of_two_is_a_rotation_by_hand():
    """Q = [[0, t], [-t, 0]] is the tangent of half an angle: with t = 1, R turns by 90 degrees."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).requires_grad_(False)
    model[0].weight.copy_(torch.eye(2))
    layer = Attached(model, OFT(2, "all"), 0).layers["0"]
    layer.load({"oft_blocks": torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])})
    torch.testing.assert_close(turned(layer)[0], torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    weight = model(torch.eye(2)).T  # R^T
    torch.testing.assert_close(weight, torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    assert layer.change_norm() == pytest.approx(2.0)  # |[[-1, -1], [1, -1]]|


@pytest.mark.parametrize("name", INPUTS)
def test_the_weight_is_turned_block_by_block_and_the_bias_is_not(name):
    model = base()
    module = model.get_submodule(name)
    attached = Attached(model, OFT(7, name), 0)
    randomize(attached)
    layer = attached.layers[name]
    count, size = layer.blocks.shape[:2]
    assert (count, size) == {"linear": (4, 5), "conv": (1, 7), "point": (1, 7)}[name]
    rows = module.weight.reshape(count, size, -1)
    weight = torch.einsum("knm,knc->kmc", turned(layer), rows).reshape(module.weight.shape)
    x = torch.randn(INPUTS[name])
    with torch.no_grad():
        out = module(x)
        attached.remove()
        module.weight.copy_(weight)
        torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-5)
    before = torch.linalg.svdvals(rows)
    after = torch.linalg.svdvals(weight.reshape(count, size, -1))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_prime_number_of_outputs_is_named():
    with pytest.raises(
        ValueError, match="0: Its 13 outputs have no divisor from 2 to 8.*raise rank"
    ):
        Attached(nn.Sequential(nn.Linear(4, 13)), OFT(8, "all"), 0)
