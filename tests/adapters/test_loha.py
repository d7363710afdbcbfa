# SPDX-License-Identifier: Apache-2.0
"""LoHa against PEFT's, by both of its paths, and by hand."""

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.loha import LoHa

from .test_lora import INPUTS, base, randomize


def test_by_hand():
    """w1 = (1, 2)^T (3, 1) = [[3, 1], [6, 2]], w2 = (1, 1)^T (1, 5), alpha / rank = 2: dW = 2 [[3, 5], [6, 10]]."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).requires_grad_(False)
    model[0].weight.zero_()
    layer = Attached(model, LoHa(1, 2.0, "all"), 0).layers["0"]
    layer.load(
        {
            "hada_w1_a": torch.tensor([[1.0], [2.0]]),
            "hada_w1_b": torch.tensor([[3.0, 1.0]]),
            "hada_w2_a": torch.tensor([[1.0], [1.0]]),
            "hada_w2_b": torch.tensor([[1.0, 5.0]]),
            "alpha": torch.tensor(2.0),
        }
    )
    assert model(torch.eye(2)).T.tolist() == [[6.0, 10.0], [12.0, 20.0]]
    assert layer.change_norm() == pytest.approx((36 + 100 + 144 + 400) ** 0.5)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("is_factored", [False, True])
def test_output_and_gradients_equal_peft(name, is_factored):
    model, theirs = base(), base()
    attached = Attached(model, LoHa(4, 6.0, "all"), 0)
    randomize(attached)
    config = peft.LoHaConfig(r=4, alpha=6, target_modules=[name])
    wrapped = peft.get_peft_model(nn.ModuleDict(dict(theirs.named_children())), config)
    oracle = wrapped.base_model.model[name]
    layer = attached.layers[name]
    layer.is_factored = is_factored
    pairs = [
        (layer.get_parameter(key), oracle.get_parameter(f"hada_{key}.default"))
        for key in ("w1_a", "w1_b", "w2_a", "w2_b")
    ]
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    x = torch.randn(INPUTS[name])
    out, expected = model.get_submodule(name)(x), oracle(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * scale)
    (out / scale).square().sum().backward()
    (expected / scale).square().sum().backward()
    for own, other in pairs:
        largest = float(other.grad.abs().max())
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5 * largest)


def test_the_cheaper_path_is_taken():
    """The factors have r^2 (out + in) numbers, dW has out in: 256 (640 + 640) < 640^2 < 400 (640 + 640)."""
    for rank, is_factored in ((8, True), (16, True), (20, False), (32, False)):
        layer = LoHa(rank).build(nn.Linear(640, 640), torch.Generator())
        assert layer.is_factored == is_factored, rank


def test_dense_keeps_no_more_than_factors_and_the_weight():
    """Autograd keeps the factors of the product and, for the gradient of x, dW: not its two halves."""
    layer = LoHa(8).build(nn.Linear(64, 48), torch.Generator())
    layer.is_factored = False
    kept = []
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(x, torch.zeros(3, 48))
    assert sum(n == 64 * 48 for n in kept) == 1


def test_the_start_is_that_of_lycoris():
    layer = LoHa(16).build(nn.Linear(400, 300), torch.Generator().manual_seed(0))
    assert float(layer.w1_a.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert float(layer.w1_b.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert float(layer.w2_b.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert not bool(layer.w2_a.any())
