# SPDX-License-Identifier: Apache-2.0
"""Where a LoRA begins, against PEFT's own initialisations."""

import copy

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.dora import DoRA
from graft.adapters.lora import LoRA

from .test_lora import INPUTS, base


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 16)).requires_grad_(False)


def peft_layer(init, rank=4, alpha=6):
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=init)
    return peft.get_peft_model(model(), config).base_model.model[0]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_training_from_a_part_of_the_weight_is_that_of_peft(init):
    """Three steps of SGD give the same outputs, whose start is the base's; signs of the factors may differ."""
    ours, theirs = model(), peft_layer(init)
    layer = Attached(ours, LoRA(4, 6.0, "all", init=init), 0).layers["0"]
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(x), model()(x)) and layer.change_norm() == 0.0
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    torch.testing.assert_close(layer.up @ layer.down, up @ down, rtol=1e-4, atol=1e-5)
    for parameters, module in ((layer.parameters(), ours), ([down, up], theirs)):
        optimizer = torch.optim.SGD(list(parameters), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).sub(1).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert float((ours(x) - model()(x)).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("name", INPUTS)
def test_its_file_is_a_plain_lora_of_twice_the_rank(init, name):
    one, two = base(), base()
    network = Attached(one, LoRA(3, 1.5, name, init=init), 0)
    layer = network.layers[name]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape))
    saved = network.tensors()
    plain = Attached(two, LoRA(6, 3.0, name), 1)
    plain.load(saved)
    x = torch.randn(INPUTS[name])
    torch.testing.assert_close(
        one.get_submodule(name)(x), two.get_submodule(name)(x), rtol=1e-4, atol=1e-4
    )
    assert layer.change_norm() == pytest.approx(plain.layers[name].change_norm(), rel=1e-9)
    other = base()
    again = Attached(other, LoRA(3, 1.5, name, init=init), 5)
    again.take_alphas(saved)
    again.load(saved)
    assert torch.equal(other.get_submodule(name)(x), one.get_submodule(name)(x))
    assert all(torch.equal(value, again.tensors()[key]) for key, value in saved.items())


def test_the_parts_by_hand():
    """W = diag(9, 4): PiSSA of rank 1 at scale 1 is 3 3 in the first place; OLoRA is its Q and R."""
    flat = nn.Sequential(nn.Linear(2, 2, bias=False)).requires_grad_(False)
    flat[0].weight.copy_(torch.diag(torch.tensor([9.0, 4.0])))
    layer = Attached(copy.deepcopy(flat), LoRA(1, blocks="all", init="pissa"), 0).layers["0"]
    torch.testing.assert_close(layer.up.detach().abs(), torch.tensor([[3.0], [0.0]]))
    torch.testing.assert_close(
        (layer.up @ layer.down).detach(), torch.tensor([[9.0, 0.0], [0.0, 0.0]])
    )
    layer = Attached(flat, LoRA(1, blocks="all", init="olora"), 0).layers["0"]
    torch.testing.assert_close(layer.up.detach().abs(), torch.tensor([[1.0], [0.0]]))


def test_a_rank_above_the_weights_keeps_the_rest_as_it_was_drawn():
    layer = Attached(model(), LoRA(20, blocks="all", init="pissa"), 0).layers["0"]
    assert bool(layer.down[16:].any()) and not bool(layer.up[:, 16:].any())


def test_gaussian_is_that_of_peft():
    layer = LoRA(8, init="gaussian").build(nn.Linear(4096, 8), torch.Generator().manual_seed(0))
    assert float(layer.down.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    theirs = peft_layer("gaussian", rank=8).lora_A["default"].weight.detach()
    assert float(theirs.std()) == pytest.approx(1 / 8, rel=0.2)
    assert not bool(layer.up.any())


def test_orthogonal_factors_are_not_0_but_their_product_is():
    layer = LoRA(8, init="orthogonal").build(nn.Linear(512, 256), torch.Generator().manual_seed(0))
    theirs = peft_layer("orthogonal", rank=8)
    assert float((layer.up @ layer.down).detach().abs().max()) < 1e-6
    # Entries are sums of 4 products of N(0, 1) with a row of an orthogonal 8 x 8 matrix, by 10: variance 4 / 8 / 100.
    for factor in (layer.up, layer.down):
        assert float(factor.detach().std()) == pytest.approx((4 / 8) ** 0.5 / 10, rel=0.1)
    assert float(theirs.lora_B["default"].weight.detach().std()) == pytest.approx(0.07, rel=0.35)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"init": "pisa"}, "Did you mean pissa"),
        ({"init": "pissa", "tucker": True}, "tucker goes with init=kaiming only"),
    ],
)
def test_what_does_not_go_together_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**settings)
    with pytest.raises(ValueError, match="kaiming or gaussian, not pissa"):
        DoRA(init="pissa")
    with pytest.raises(ValueError, match="even rank, and this layer has 3"):
        Attached(model(), LoRA(3, blocks="all", init="orthogonal"), 0)
