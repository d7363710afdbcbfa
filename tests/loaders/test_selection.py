# SPDX-License-Identifier: Apache-2.0
"""A part of an adapter by the block language: whole layers, bit for bit, and metadata that say so."""

import pytest
import torch

from graft.adapters.file import AdapterFile
from graft.loaders import lora_file
from graft.loaders.selection import select

CONTENT = "output_blocks.0.1.transformer_blocks.0.attn1.to_q"
STYLE = "output_blocks.1.1.transformer_blocks.3.attn2.to_out.0"
TENTH = "output_blocks.10.1.transformer_blocks.0.attn1.to_q"


def adapter(**metadata):
    tensors = {}
    for number, name in enumerate((CONTENT, STYLE, TENTH)):
        rank = number + 2
        tensors |= {
            f"diffusion_model.{name}.lora_up.weight": torch.full((4, rank), float(number)),
            f"diffusion_model.{name}.lora_down.weight": torch.full((rank, 4), float(number)),
            f"diffusion_model.{name}.alpha": torch.tensor(float(rank)),
        }
    tensors["bundle_emb.TOK.clip_l"] = torch.ones(1, 4)
    tensors["text_encoders.clip_l.layers.0.to_q.lora_up.weight"] = torch.ones(4, 2)
    said = lora_file.describe(tensors) | {"graft.steps": "7"} | metadata
    return AdapterFile(tensors, said, "cat")


def layers(made):
    return {key.split(".lora")[0].split(".alpha")[0] for key in made.tensors}


@pytest.mark.parametrize(
    "blocks,kept",
    [
        ("b-lora content", {CONTENT}),
        ("b-lora style", {STYLE}),
        ("b-lora", {CONTENT, STYLE}),
        (" b-lora content,\n output_blocks.10 ", {CONTENT, TENTH}),
        ("-b-lora", {TENTH}),
        ("to_q", {CONTENT, TENTH}),
        ("all", {CONTENT, STYLE, TENTH}),
    ],
)
def test_layers_are_kept_whole_and_bit_for_bit(blocks, kept):
    whole = adapter()
    made = select(whole, blocks)
    assert layers(made) == {f"diffusion_model.{name}" for name in kept}
    assert len(made.tensors) == 3 * len(kept)
    assert all(tensor is whole.tensors[key] for key, tensor in made.tensors.items())
    assert len(whole.tensors) == 11, "what came in is as it was"


def test_without_blocks_all_of_it_stays():
    whole = adapter()
    assert select(whole, "") is whole and select(whole, " \n") is whole


def test_the_metadata_say_what_was_kept_and_describe_it():
    whole = adapter()
    assert whole.metadata["ss_network_dim"] == "Dynamic"
    made = select(whole, " b-lora style ")
    assert made.metadata["graft.blocks"] == "b-lora style" and made.metadata["graft.steps"] == "7"
    assert made.metadata["ss_network_dim"] == "3" and made.metadata["ss_network_alpha"] == "3"
    assert made.metadata["sshs_model_hash"] == lora_file.data_hash(made.tensors)
    assert made.name == "cat"


def test_every_kind_of_tensor_belongs_to_its_layer():
    ends = ("hada_w1_a", "lokr_w2", "oft_blocks", "dora_scale", "diff_b", "lora_mid.weight", "diff")
    tensors = {f"diffusion_model.{CONTENT}.{end}": torch.zeros(1) for end in ends}
    other = {f"diffusion_model.{STYLE}.{end}": torch.zeros(1) for end in ends}
    assert set(select(AdapterFile(tensors | other), "b-lora content").tensors) == set(tensors)


@pytest.mark.parametrize("blocks", ["alpha", "lora_up", "weight", "bundle_emb", "clip_l"])
def test_parts_of_a_layer_are_no_blocks(blocks):
    with pytest.raises(ValueError, match=f"blocks '{blocks}' matches no layer that is trained"):
        select(adapter(), blocks)


def test_nothing_selected_is_an_error_with_near_names():
    with pytest.raises(ValueError, match="Did you mean .*b-lora style"):
        select(adapter(), "b-lora styl")
    with pytest.raises(ValueError, match="leaves no layer of those that are trained"):
        select(adapter(), "b-lora style, -output_blocks")
    other = {
        key.replace("diffusion_model.", "lora_unet_"): t for key, t in adapter().tensors.items()
    }
    with pytest.raises(ValueError, match="Leave blocks empty"):
        select(AdapterFile(other, name="theirs"), "b-lora")
