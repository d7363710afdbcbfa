# SPDX-License-Identifier: Apache-2.0
"""Rank and alpha by pattern, of convolutions, by the root of the rank, and LoRA with a core, by hand and by PEFT."""

import math

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList([self.block(), self.block()])
        self.output_blocks = nn.ModuleList([self.block(), self.block()])
        self.requires_grad_(False)

    @staticmethod
    def block():
        attention = nn.ModuleDict({name: nn.Linear(12, 12) for name in ("to_q", "to_v")})
        convolution = nn.ModuleDict(
            {"wide": nn.Conv2d(4, 6, 3, padding=1), "point": nn.Conv2d(4, 6, 1)}
        )
        return nn.ModuleDict({"attn": attention, "conv": convolution})


def numbers(**settings):
    """Rank and alpha as the file has them, by layer."""
    network = Attached(Blocks(), LoRA(**{"blocks": "all", "rank": 8, **settings}), 0)
    return {
        name: (len(tensors["lora_down.weight"]), float(tensors["alpha"]))
        for name, tensors in ((n, layer.tensors()) for n, layer in network.layers.items())
    }


def test_ranks_by_pattern_keep_the_scale_and_the_last_one_counts():
    found = numbers(alpha=4.0, ranks="output_blocks=32; to_v=2")
    assert found["input_blocks.0.attn.to_q"] == (8, 4.0)
    assert found["output_blocks.1.attn.to_q"] == (32, 16.0)
    assert found["output_blocks.1.attn.to_v"] == found["input_blocks.0.attn.to_v"] == (2, 1.0)
    assert found["output_blocks.0.conv.wide"] == (32, 16.0)


def test_alphas_by_pattern():
    found = numbers(ranks="to_v=2", alphas="output_blocks.*=3, conv=1.5")
    assert found["output_blocks.0.attn.to_v"] == (2, 3.0)
    assert found["input_blocks.0.attn.to_v"] == (2, 2.0)
    assert found["output_blocks.0.conv.point"] == (8, 1.5)
    assert found["input_blocks.0.attn.to_q"] == (8, 8.0)


def test_ranks_and_alphas_equal_those_of_peft_by_its_patterns():
    config = peft.LoraConfig(
        r=8,
        lora_alpha=4,
        target_modules=["to_q", "to_v"],
        rank_pattern={"to_v": 2},
        alpha_pattern={"to_v": 5},
    )
    wrapped = peft.get_peft_model(Blocks(), config)
    found = numbers(alpha=4.0, blocks="attn", ranks="to_v=2", alphas="to_v=5")
    for name, (rank, alpha) in found.items():
        layer = wrapped.base_model.model.get_submodule(name)
        assert (layer.r["default"], layer.scaling["default"]) == (rank, alpha / rank)


def test_convolutions_larger_than_a_point_have_a_rank_of_their_own():
    found = numbers(alpha=4.0, conv_rank=2)
    assert found["input_blocks.0.conv.wide"] == (2, 1.0)
    assert found["input_blocks.0.conv.point"] == found["input_blocks.0.attn.to_q"] == (8, 4.0)
    assert numbers(conv_rank=2, conv_alpha=3.0)["input_blocks.0.conv.wide"] == (2, 3.0)
    assert numbers(conv_alpha=3.0)["input_blocks.0.conv.wide"] == (8, 3.0)
    assert numbers(conv_rank=2, ranks="conv=5")["input_blocks.0.conv.wide"] == (5, 5.0)
    assert numbers(conv_rank=2, alphas="conv=5")["input_blocks.0.conv.wide"] == (2, 5.0)


def test_rslora_is_alpha_by_the_root_of_the_rank_as_in_peft_and_the_file_has_it_as_alpha():
    found = numbers(rank=16, alpha=2.0, rslora=True, ranks="to_v=4", alphas="to_v=2")
    config = peft.LoraConfig(
        r=16, lora_alpha=2, target_modules=["to_q"], use_rslora=True, rank_pattern={}
    )
    scaling = peft.get_peft_model(Blocks(), config).base_model.model.get_submodule(
        "input_blocks.0.attn.to_q"
    )
    rank, alpha = found["input_blocks.0.attn.to_q"]
    assert alpha / rank == pytest.approx(scaling.scaling["default"]) == 2 / math.sqrt(16)
    assert found["input_blocks.0.attn.to_v"] == (4, 2.0 * math.sqrt(4))


@pytest.mark.parametrize(
    "settings,message",
    [
        (
            {"ranks": "output_bloks=4"},
            "ranks 'output_bloks' matches no layer that is trained.*output_blocks",
        ),
        (
            {"blocks": "to_q", "alphas": "to_v=4"},
            "alphas 'to_v' matches no layer.*Did you mean to_q",
        ),
        ({"ranks": "to_v"}, "'to_v' in ranks must read pattern=whole number above 0"),
        ({"ranks": "to_v=0"}, "'to_v=0' in ranks"),
        ({"ranks": "to_v=2.5"}, "'to_v=2.5' in ranks"),
        ({"ranks": "to_v=99999"}, "'to_v=99999' in ranks"),
        ({"ranks": "=4"}, "'=4' in ranks"),
        ({"alphas": "to_v=nan"}, "'to_v=nan' in alphas must read pattern=number"),
        ({"conv_rank": -1}, "conv_rank is -1"),
    ],
)
def test_what_is_wrong_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        numbers(**settings)


def test_settings_show_what_is_not_the_default():
    assert repr(LoRA()) == "LoRA(rank=16, alpha=0.0, blocks='attention')"
    assert repr(LoRA(4, ranks="to_v=2", tucker=True)) == (
        "LoRA(rank=4, alpha=0.0, blocks='attention', ranks='to_v=2', tucker=True)"
    )


@pytest.mark.parametrize("kernel,stride,padding", [(3, 1, 1), (3, 2, 1), ((3, 5), 1, 0)])
def test_a_core_is_the_einsum_of_its_three_parts(kernel, stride, padding):
    """dW[i, j, ...] = alpha / r sum_mn mid[m, n, ...] up[i, m] down[n, j]: SPECS' own form."""
    model = nn.Sequential(nn.Conv2d(4, 6, kernel, stride, padding)).requires_grad_(False)
    network = Attached(model, LoRA(3, 1.5, "all", tucker=True), 0)
    layer = network.layers["0"]
    assert layer.change_norm() == 0.0
    with torch.no_grad():
        layer.up.copy_(torch.randn(layer.up.shape))
    down, up = layer.down.flatten(1), layer.up.flatten(1)
    change = 0.5 * torch.einsum("mn...,im,nj->ij...", layer.mid, up, down)
    x = torch.randn(2, 4, 9, 9)
    base = model[0].weight
    expected = nn.functional.conv2d(x, base + change, model[0].bias, stride, padding)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.change_norm() == pytest.approx(float(change.detach().norm()), rel=1e-6)
    assert set(layer.tensors()) == {
        "lora_up.weight",
        "lora_mid.weight",
        "lora_down.weight",
        "alpha",
    }
