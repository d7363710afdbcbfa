# SPDX-License-Identifier: Apache-2.0
"""Other programs' names for layers; the host's own map is the oracle in tests/host/files/test_keys.py."""

import pytest

from graft.adapters.spellings import bare, diffusers, text
from graft.adapters.targets import matching

TEXT = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "part",
    [
        "text_encoder.text_model.encoder.layers.0",
        "lora_te1_text_model_encoder_layers_0",
        "lora_te_text_model_encoder_layers_0",
        "layers.0",
    ],
)
def test_text_encoders_are_found_by_every_spelling(part):
    names = [TEXT, TEXT.replace("layers.0", "layers.10"), TEXT.replace("clip_l", "clip_g")]
    expected = {TEXT} if part != "layers.0" else {names[0], names[2]}
    assert matching(names, part) == expected
    assert text(names[2])[0].startswith("text_encoder_2.text_model")


def test_a_models_own_names_come_first():
    names = ["input_blocks.1.1.proj_in", "output_blocks.2.2.conv", "middle_block.0.in_layers.2"]
    assert matching(names, "conv") == {names[1]}
    assert matching(names, "conv1") == {names[2]}  # nothing is called so here, but by diffusers
    assert matching(names, "diffusion_model.input_blocks") == {names[0]}


def test_a_unet_with_other_levels_has_no_spellings():
    names = ["input_blocks.1.1.proj_in", "input_blocks.2.0.op", "output_blocks.2.2.conv"]
    with pytest.raises(ValueError, match="matches no layer"):
        matching(names, "down_blocks.0.attentions.0")
    assert matching([names[0], names[2]], "down_blocks.0.attentions.0") == {names[0]}


def test_underscores_end_at_a_segment():
    names = ["output_blocks.1.1.proj_in", "output_blocks.11.1.proj_in"]
    assert matching(names, "lora_unet_output_blocks_1_1") == {names[0]}
    with pytest.raises(ValueError, match="matches no layer"):
        matching(names, "lora_unet_output_block")
    with pytest.raises(ValueError, match="matches no layer"):
        matching(names, "lora_output")


def test_other_models_have_none():
    assert diffusers("double_blocks.0.img_attn.qkv") is None and text("t5xxl.a") == ()
    assert bare("unet.up_blocks.0") == "up_blocks.0" and bare("united") == "united"
    names = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"]
    assert matching(names, "lora_unet_double_blocks_0_img_attn_qkv") == {names[0]}
