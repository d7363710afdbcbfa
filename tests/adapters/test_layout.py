# SPDX-License-Identifier: Apache-2.0
"""A model's layers as groups, blocks and cells, on a network with a UNet's names and one of a transformer's."""

import pytest
from torch import nn

from graft.adapters.layout import layout, place
from graft.adapters.targets import matching

UNET = [
    "time_embed.0",
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.1.proj_in",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_q",
    "input_blocks.1.1.transformer_blocks.1.attn2.to_q",
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "input_blocks.2.0.op",
    "input_blocks.3.0.in_layers.2",
    "middle_block.0.in_layers.2",
    "middle_block.2.in_layers.2",
    "output_blocks.0.0.in_layers.2",
    "output_blocks.0.1.conv",
    "output_blocks.1.0.in_layers.2",
    "out.2",
]
TRANSFORMER = [
    "img_in",
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_attn.proj",
    "double_blocks.0.txt_mlp.0",
    "single_blocks.0.linear1",
    "single_blocks.1.linear1",
    "joint_blocks.0.x_block.attn.qkv",
    "joint_blocks.0.context_block.attn.qkv",
]


def network(names, width=4):
    root = nn.Module()
    for name in names:
        module = root
        *parents, leaf = name.split(".")
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        is_conv = leaf in ("op", "conv") or "in_layers" in name
        module.add_module(leaf, nn.Conv2d(3, width, 3) if is_conv else nn.Linear(3, width))
    return root


def cells(groups):
    return {(b.name, c.part): c for g in groups for b in g.blocks for c in b.cells}


def test_a_unet_has_three_ways_and_the_rest():
    groups = layout(network(UNET))
    assert [g.name for g in groups] == ["input_blocks", "middle_block", "output_blocks", "other"]
    assert [b.label for b in groups[0].blocks] == ["0", "1", "2", "3"]
    assert groups[0].parts == ("conv", "res", "attn1", "attn2", "ff", "proj", "down")
    assert [b.name for b in groups[3].blocks] == ["time_embed", "out"]


def test_the_cells_hold_every_layer_once():
    found = [name for cell in cells(layout(network(UNET))).values() for name in cell.layers]
    assert sorted(found) == sorted(UNET)


@pytest.mark.parametrize("names", [UNET, TRANSFORMER])
def test_the_patterns_of_a_cell_select_its_layers_and_no_others(names):
    for cell in cells(layout(network(names))).values():
        selected = set().union(*(matching(names, pattern) for pattern in cell.patterns))
        assert selected == set(cell.layers)


def test_patterns_are_as_a_person_would_write_them():
    found = cells(layout(network(UNET)))
    assert found["input_blocks.1", "attn2"].patterns == ("input_blocks.1.1.*.attn2",)
    assert found["middle_block", "res"].patterns == ("middle_block.0", "middle_block.2")
    found = cells(layout(network(TRANSFORMER)))
    assert found["double_blocks.0", "img_attn"].patterns == ("double_blocks.0.img_attn",)
    assert found["joint_blocks.0", "x_block.attn"].patterns == ("joint_blocks.0.x_block.attn",)


def test_kinds_and_channels_are_told():
    found = cells(layout(network(UNET, width=7)))
    assert found["input_blocks.1", "res"].linear == 1  # the embedding of the time
    assert len(found["input_blocks.1", "res"].layers) == 2
    assert found["input_blocks.1", "attn2"].channels == 7


def test_the_latent_is_halved_on_the_way_down_and_doubled_on_the_way_up():
    levels = {b: c.level for (b, _), c in cells(layout(network(UNET))).items()}
    assert levels["input_blocks.1"] == 0
    assert levels["input_blocks.2"] == levels["middle_block"] == levels["output_blocks.0"] == 1
    assert levels["output_blocks.1"] == 0
    assert levels["out"] is None


@pytest.mark.parametrize(
    ("at", "patterns"),
    [
        (("input_blocks",), ("input_blocks",)),
        (("input_blocks", "input_blocks.1"), ("input_blocks.1",)),
        (("input_blocks", "", "attn2"), ("input_blocks.*.attn2",)),
        (("output_blocks", "", "res"), ("output_blocks.[0-9]*.0",)),
        (("input_blocks", "input_blocks.1", "attn1"), ("input_blocks.1.1.*.attn1",)),
        (("other",), ("time_embed", "out")),
    ],
)
def test_a_place_has_patterns_for_all_that_is_in_it(at, patterns):
    groups = layout(network(UNET))
    found, layers = place(groups, *at)
    assert found == patterns
    assert set().union(*(matching(UNET, p) for p in found)) == layers
    assert layers == {
        name
        for (b, p), c in cells(groups).items()
        for name in c.layers
        if (b.split(".")[0] == at[0] or at[0] == "other" and "block" not in b)
        and at[1:2] in ((), ("",), (b,))
        and at[2:] in ((), (p,))
    }


def test_a_place_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no 'input_blocks input_blocks\.9'"):
        place(layout(network(UNET)), "input_blocks", "input_blocks.9")
