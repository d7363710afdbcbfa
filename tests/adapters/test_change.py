# SPDX-License-Identifier: Apache-2.0
"""|dW| / |W| by block: the closed form against the product itself, and which layers make a block."""

import math

import pytest
import torch
from torch import nn

from graft.adapters.base import Layer
from graft.adapters.change import Measure, block_of
from graft.adapters.lora import LoRA


def trained(module, rank=5, alpha=2.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = LoRA(rank=rank, alpha=alpha).build(module, generator)
    with torch.no_grad():
        layer.up.copy_(torch.randn(layer.up.shape, generator=generator))
    return layer


def dense(layer):
    """dW as the definition has it, in fp64: alpha / rank times up @ down, flattened."""
    up, down = layer.up.detach().double().flatten(1), layer.down.detach().double().flatten(1)
    return layer.alpha / layer.up.shape[1] * up @ down


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(33, 17),
        nn.Conv2d(6, 9, 3, padding=1),
        nn.Conv2d(6, 9, 1),
        nn.Conv1d(4, 7, 5),
        nn.Conv3d(2, 3, 3),
        nn.Linear(3, 2),  # smaller than the rank
    ],
    ids=str,
)
def test_the_norm_is_that_of_the_dense_product(module):
    layer = trained(module)
    assert layer.change_norm() == pytest.approx(float(dense(layer).norm()), rel=1e-12)


def test_the_norm_by_hand():
    """up = (3, 4), down = (0, 2, 0), alpha / rank = 1/2: |dW| = 1/2 * 5 * 2 = 5."""
    layer = LoRA(rank=1, alpha=0.5).build(nn.Linear(3, 2), torch.Generator())
    layer.load(
        {
            "lora_up.weight": torch.tensor([[3.0], [4.0]]),
            "lora_down.weight": torch.tensor([[0.0, 2.0, 0.0]]),
        }
    )
    assert layer.change_norm() == 5.0


def test_nothing_is_changed_before_training():
    assert LoRA(rank=4).build(nn.Linear(8, 8), torch.Generator()).change_norm() == 0.0


def test_blocks_are_what_a_user_calls_them():
    names = {
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q": "input_blocks.4",
        "middle_block.1.proj_in": "middle_block",
        "output_blocks.10.0.in_layers.2": "output_blocks.10",
        "double_blocks.3.img_attn.qkv": "double_blocks.3",
        "layers.7.attention.wq": "layers.7",
        "out.2": "out",
        "time_embed.0": "time_embed",
    }
    assert {name: block_of(name) for name in names} == names


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.middle_block = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 5, 3))


def test_a_block_is_the_root_of_the_sums_of_squares():
    root = Tree()
    names = ["input_blocks.0", "input_blocks.1", "middle_block.0", "middle_block.1"]
    layers = {name: trained(root.get_submodule(name), seed=seed) for seed, name in enumerate(names)}
    found = Measure(root, layers)()
    assert list(found.blocks) == ["input_blocks.0", "input_blocks.1", "middle_block"]
    assert not found.skipped
    both = ["middle_block.0", "middle_block.1"]
    dw = torch.cat([dense(layers[name]).flatten() for name in both])
    w = torch.cat([root.get_submodule(name).weight.detach().flatten() for name in both]).double()
    assert found.blocks["middle_block"] == pytest.approx(float(dw.norm() / w.norm()), rel=1e-6)
    assert [name for name, _ in found.largest(2)] == sorted(
        found.blocks, key=lambda name: -found.blocks[name]
    )[:2]


def test_frozen_weights_are_read_once():
    root = Tree()
    layers = {"middle_block.0": trained(root.middle_block[0])}
    measure = Measure(root, layers)
    first = measure().blocks["middle_block"]
    root.middle_block[0].weight.data.zero_()
    with torch.no_grad():
        layers["middle_block.0"].up.mul_(3)
    assert measure().blocks["middle_block"] == pytest.approx(3 * first, rel=1e-6)


def test_what_cannot_be_measured_is_skipped_by_name():
    root = Tree()
    root.input_blocks[0].weight = nn.Parameter(torch.ones(6, 4, dtype=torch.int8), False)
    root.middle_block[0].scale_weight = torch.tensor(2.0)
    layers = {"input_blocks.0": trained(nn.Linear(4, 6)), "input_blocks.1": Layer()}
    layers |= {"middle_block.0": trained(nn.Linear(4, 4))}
    found = Measure(root, layers)()
    assert found.blocks == {} and found.skipped == tuple(layers)


def test_plain_fp8_weights_are_measured():
    root = Tree()
    weight = root.input_blocks[0].weight.detach().to(torch.float8_e4m3fn)
    root.input_blocks[0].weight = nn.Parameter(weight, False)
    layer = trained(nn.Linear(4, 6))
    (ratio,) = Measure(root, {"input_blocks.0": layer})().blocks.values()
    whole = math.sqrt(float(weight.double().square().sum()))
    assert ratio == pytest.approx(float(dense(layer).norm()) / whole, rel=1e-6)
