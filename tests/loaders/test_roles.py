# SPDX-License-Identifier: Apache-2.0
"""What the end of a tensor's name says, in names that other programs write."""

import pytest

from graft.loaders.roles import ALPHA, DOWN, MAGNITUDE, MID, UP, down_names, split


@pytest.mark.parametrize(
    ("key", "layer", "role"),
    [
        ("lora_unet_mid_block_proj_in.lora_up.weight", "lora_unet_mid_block_proj_in", UP),
        ("lora_unet_mid_block_proj_in.lora_mid.weight", "lora_unet_mid_block_proj_in", MID),
        ("diffusion_model.a.b.alpha", "diffusion_model.a.b", ALPHA),
        ("unet.a.attn1.processor.to_q_lora.down.weight", "unet.a.attn1.processor.to_q", DOWN),
        ("unet.a.attn1.to_q.lora.up.weight", "unet.a.attn1.to_q", UP),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", UP),
        ("base_model.model.a.lora_A.weight", "base_model.model.a", DOWN),
        ("base_model.model.a.lora_A.default.weight", "base_model.model.a", DOWN),
        ("transformer.a.lora_B", "transformer.a", UP),
        ("a.lora_magnitude_vector", "a", MAGNITUDE),
        ("a.lora_magnitude_vector.weight", "a", MAGNITUDE),
        ("a.lora_magnitude_vector.default", "a", MAGNITUDE),
        ("a.lora_magnitude_vector.default.weight", "a", MAGNITUDE),
        ("lora_unet_a.dora_scale", "lora_unet_a", MAGNITUDE),
        ("lora_unet_a.hada_w1_a", "lora_unet_a", "hada_w1_a"),
        ("lora_unet_a.a1.weight", "lora_unet_a", "a1.weight"),
        ("oft_unet_a.oft_blocks", "oft_unet_a", "oft_blocks"),
        ("diffusion_model.a.diff_b", "diffusion_model.a", "diff_b"),
        ("model.diffusion_model.a.weight", "model.diffusion_model.a.weight", ""),
        ("a.lora_A.default", "a.lora_A.default", ""),
        (".alpha", ".alpha", ""),
        ("lora_up.weight", "lora_up.weight", ""),
    ],
)
def test_layers_and_roles(key, layer, role):
    assert split(key) == (layer, role)


def test_a_down_half_is_found_by_each_of_its_names():
    assert len(down_names("a.b")) == 5
    assert all(split(name) == ("a.b", DOWN) for name in down_names("a.b"))
