# SPDX-License-Identifier: Apache-2.0
"""DoRA against PEFT's layers, by hand, and beginning with a LoRA."""

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.dora import DoRA
from graft.adapters.lora import LoRA
from graft.adapters.pair import Pair

from .test_lora import INPUTS, base


def randomize(attached):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in attached.parameters().values():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("alpha", [0.0, 6.0])
def test_output_and_gradients_equal_peft(name, alpha):
    model, theirs = base(), base()
    attached = Attached(model, DoRA(rank=3, alpha=alpha, blocks="all"), 0)
    randomize(attached)
    config = peft.LoraConfig(r=3, lora_alpha=alpha or 3, target_modules=[name], use_dora=True)
    wrapped = peft.get_peft_model(nn.ModuleDict(dict(theirs.named_children())), config)
    oracle, layer = wrapped.base_model.model[name], attached.layers[name]
    pairs = [
        (layer.down, oracle.lora_A["default"].weight),
        (layer.up, oracle.lora_B["default"].weight),
        (layer.magnitude, oracle.lora_magnitude_vector["default"].weight),
    ]
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own.reshape(other.shape))
    x = torch.randn(INPUTS[name])
    out, expected = model.get_submodule(name)(x), oracle(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.square().mean().backward()
    expected.square().mean().backward()
    for own, other in pairs:
        torch.testing.assert_close(own.grad.reshape(other.shape), other.grad, rtol=1e-4, atol=1e-5)


def test_by_hand():
    """W0 = (3, 4), up down = (0, 0), m = 10: W = 10 (3, 4) / 5 = (6, 8). With up down = (2, 8): 10 (5, 12) / 13."""
    model = nn.Sequential(nn.Linear(2, 1)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
    model[0].bias.fill_(1.0)
    layer = Attached(model, DoRA(1, blocks="all"), 0).layers["0"]
    assert layer.magnitude.tolist() == [5.0]
    with torch.no_grad():
        layer.magnitude.fill_(10.0)
    assert model(torch.eye(2)).flatten().tolist() == [7.0, 9.0]
    assert layer.change_norm() == pytest.approx(5.0)
    with torch.no_grad():
        layer.up.fill_(1.0)
        layer.down.copy_(torch.tensor([[2.0, 8.0]]))
    expected = torch.tensor([1 + 50 / 13, 1 + 120 / 13])
    torch.testing.assert_close(model(torch.eye(2)).flatten(), expected)


def test_rows_of_the_weight_are_as_long_as_the_magnitude_says():
    model = base()
    attached = Attached(model, DoRA(4, blocks="linear"), 0)
    randomize(attached)
    zero = model.linear(torch.zeros(1, 12))
    rows = (model.linear(torch.eye(12)) - zero).T
    torch.testing.assert_close(rows.norm(dim=1), attached.layers["linear"].magnitude.abs())


def test_a_row_of_zeros_stays_finite():
    model = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    model[0].weight[1].zero_()
    layer = Attached(model, DoRA(2, blocks="all"), 0).layers["0"]
    out = model(torch.randn(5, 4))
    out.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_it_begins_as_a_lora_of_its_seed_does_and_drops_out_alike():
    one = Attached(base(), DoRA(4, blocks="all", dropout=0.25), 7).layers["conv"]
    two = Attached(base(), LoRA(4, blocks="all"), 7).layers["conv"]
    assert torch.equal(one.down, two.down) and one.dropout == 0.25


def test_begun_with_a_lora_it_is_that_lora():
    pair = Pair(torch.randn(4, 12), torch.randn(20, 4), 2.0)
    model, other = base(), base()
    assert Attached(model, DoRA(4, blocks="linear"), 0).layers["linear"].begin(pair) is None
    Attached(other, LoRA(4, blocks="linear"), 0).layers["linear"].begin(pair)
    x = torch.randn(INPUTS["linear"])
    torch.testing.assert_close(model.linear(x), other.linear(x), rtol=1e-4, atol=1e-5)


def test_a_quantised_weight_and_a_core_are_refused_by_name():
    model = base()
    model.linear.scale_weight = torch.tensor(2.0)
    with pytest.raises(
        ValueError, match="linear: Its weight is quantised .*choose the network 'lora'"
    ):
        Attached(model, DoRA(blocks="linear"), 0)
    with pytest.raises(ValueError, match="no core"):
        DoRA(tucker=True)


def test_no_weight_is_kept_for_the_backward_pass():
    module = nn.Linear(64, 48).requires_grad_(False)
    layer = DoRA(2).build(module, torch.Generator())
    kept = []
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(x, torch.zeros(3, 48))
    assert max(kept) < 64 * 48
