# SPDX-License-Identifier: Apache-2.0
"""LoKr against torch.kron and PEFT's, and how sides are split."""

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graft.adapters.attach import Attached
from graft.adapters.lokr import LoKr, split

from .test_lora import INPUTS, base, randomize


@pytest.mark.parametrize(
    "size,factor,sides",
    [  # the table of LyCORIS' factorization, where it holds
        (127, -1, (1, 127)),
        (128, -1, (8, 16)),
        (128, 2, (2, 64)),
        (128, 4, (4, 32)),
        (250, -1, (10, 25)),
        (250, 2, (2, 125)),
        (250, 8, (5, 50)),
        (360, 8, (8, 45)),
        (512, -1, (16, 32)),
        (1024, -1, (32, 32)),
        (1024, 16, (16, 64)),
        (1, 4, (1, 1)),
    ],
)
def test_sides_are_split_as_by_lycoris(size, factor, sides):
    assert split(size, factor) == sides


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("rank,alpha", [(1, 3.0), (64, 3.0)])
def test_output_is_that_of_the_kronecker_product(name, rank, alpha):
    """scale = alpha / rank with a factor of low rank, 1 with whole ones, as in LyCORIS and ComfyUI."""
    model = base()
    attached = Attached(model, LoKr(rank, alpha, "all", factor=2), 0)
    randomize(attached)
    layer, module = attached.layers[name], model.get_submodule(name)
    tensors = layer.tensors()
    is_low = "lokr_w2_a" in tensors
    assert is_low == (rank == 1)
    w2 = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"] if is_low else tensors["lokr_w2"].flatten(1)
    change = (3.0 if is_low else 1.0) * torch.kron(tensors["lokr_w1"], w2)
    weight = module.weight + change.reshape(module.weight.shape)
    x = torch.randn(INPUTS[name])
    expected = (
        F.linear(x, weight, module.bias)
        if name == "linear"
        else F.conv2d(x, weight, module.bias, module.stride, module.padding)
    )
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    assert layer.change_norm() == pytest.approx(float(change.detach().norm()), rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "point"])
def test_output_and_gradients_equal_peft(name):
    """PEFT scales by alpha / rank always: the same with a factor of low rank."""
    model, theirs = base(), base()
    attached = Attached(model, LoKr(1, 2.0, "all", factor=2), 0)
    randomize(attached)
    config = peft.LoKrConfig(r=1, alpha=2, target_modules=[name], decompose_factor=2)
    wrapped = peft.get_peft_model(nn.ModuleDict(dict(theirs.named_children())), config)
    oracle, layer = wrapped.base_model.model[name], attached.layers[name]
    pairs = []
    for key in ("w1", "w2_a", "w2_b"):
        own, other = layer.get_parameter(key), oracle.get_parameter(f"lokr_{key}.default")
        assert own.numel() == other.numel()
        with torch.no_grad():
            other.copy_(own.reshape(other.shape))
        pairs.append((own, other))
    x = torch.randn(INPUTS[name])
    out, expected = model.get_submodule(name)(x), oracle(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    out.square().mean().backward()
    expected.square().mean().backward()
    for own, other in pairs:
        torch.testing.assert_close(own.grad.reshape(other.shape), other.grad, rtol=1e-4, atol=1e-4)


def test_the_file_is_small_and_dw_is_never_made():
    layer = LoKr(4).build(nn.Linear(640, 640), torch.Generator())
    assert sum(p.numel() for p in layer.parameters()) == 20 * 20 + 4 * (32 + 32)
    kept = []
    x = torch.randn(2, 640, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(x, torch.zeros(2, 640))
    assert max(kept) <= 2 * 640


def test_the_scale_of_whole_factors_is_1_whatever_alpha():
    layer = LoKr(64, 7.0).build(nn.Linear(16, 16), torch.Generator())
    assert layer.scale == 1.0 and not layer.is_low
