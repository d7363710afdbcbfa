# SPDX-License-Identifier: Apache-2.0
"""Adapters in every dialect: exact round trips, and each read by the code of the program it is for."""

import itertools
import json

import pytest
import torch

from graft.loaders import alphas
from graft.loaders.roles import ALPHA, DOWN, MAGNITUDE, UP
from graft.loaders.writing import content, dialects, magnitudes

ATTENTION = "diffusion_model.output_blocks.0.1.transformer_blocks.1.attn1"
CONV = "diffusion_model.input_blocks.4.0.in_layers.2"
TEXT = "text_encoders.clip_{}.transformer.text_model.encoder.layers.0"


def pair(generator, rows, columns, rank=4, kernel=(), alpha=2.0, dtype=torch.float32):
    up = torch.randn(rows, rank, *(1,) * len(kernel), generator=generator).to(dtype)
    down = torch.randn(rank, columns, *kernel, generator=generator).to(dtype)
    return {UP: up, DOWN: down, ALPHA: torch.tensor(alpha)}


def adapter(dora=False, alpha=2.0, dtype=torch.float16):
    """An SDXL adapter: attention, a convolution, both text encoders; with ranks that differ."""
    g = torch.Generator().manual_seed(1)
    layers = {
        f"{ATTENTION}.to_q": pair(g, 6, 6, 4, (), alpha, dtype),
        f"{ATTENTION}.to_out.0": pair(g, 6, 6, 2, (), alpha, dtype),
        "diffusion_model.output_blocks.2.2.conv": pair(g, 5, 5, 4, (3, 3), alpha, dtype),
        CONV: pair(g, 5, 3, 4, (3, 3), alpha, dtype),
        f"{TEXT.format('l')}.self_attn.q_proj": pair(g, 7, 7, 4, (), alpha, dtype),
        f"{TEXT.format('g')}.mlp.fc1": pair(g, 8, 7, 4, (), alpha, dtype),
    }
    if dora:
        for roles in layers.values():
            up = roles[UP]
            roles[MAGNITUDE] = torch.rand(len(up), *(1,) * (up.ndim - 1), generator=g) + 1
    return {f"{name}.{role}": t for name, roles in layers.items() for role, t in roles.items()}


def spell(tensors, dialect, metadata=None):
    made = dialects.write(content.read(tensors, metadata), metadata or {}, dialect)
    return made.tensors, made.metadata


def same(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key
        assert tensor.dtype == other[key].dtype or key.endswith(ALPHA), key


THERE_AND_BACK = [d for d in dialects.DIALECTS if d != dialects.PEFT]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(THERE_AND_BACK, 2)))
def test_from_dialect_to_dialect_to_dialect_nothing_changes(first, second, dora):
    tensors = adapter(dora)
    one = spell(tensors, first)
    two = spell(one[0], second, one[1])
    assert one[0].keys() != two[0].keys()
    same(spell(two[0], dialects.COMFYUI, two[1])[0], tensors)
    same(spell(two[0], first, two[1])[0], one[0])


@pytest.mark.parametrize("dialect", dialects.DIALECTS)
def test_a_written_file_is_recognized(dialect):
    tensors = {k: t for k, t in adapter().items() if not k.startswith("text_encoders")}
    assert content.read(*spell(tensors, dialect)).dialect() == dialect


def test_the_names_of_each_dialect():
    """Written down from files of sd-scripts and of diffusers' training scripts."""
    tensors = adapter()
    expected = {
        dialects.KOHYA: "lora_unet_output_blocks_0_1_transformer_blocks_1_attn1_to_out_0.lora_down.weight",
        dialects.KOHYA_DIFFUSERS: "lora_unet_up_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q.alpha",
        dialects.DIFFUSERS: "unet.up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0.lora_A.weight",
        dialects.PEFT: "base_model.model.up_blocks.0.upsamplers.0.conv.lora_B.weight",
    }
    text = {
        dialects.KOHYA: "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        dialects.DIFFUSERS: "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
    }
    for dialect, name in itertools.chain(expected.items(), text.items()):
        assert name in spell(tensors, dialect)[0], name


def test_alpha_is_where_each_dialect_keeps_it():
    made, metadata = spell(adapter(alpha=3.0), dialects.DIFFUSERS)
    config = json.loads(metadata[alphas.CONFIG])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (4, 3)
    out = "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0"
    assert config["unet.rank_pattern"] == {out: 2}
    assert not any(key.endswith("alpha") for key in made)
    written = dialects.write(content.read(adapter(alpha=3.0)), {}, dialects.PEFT)
    assert any(
        "alpha / rank is multiplied into lora_B of 4 layers" in note for note in written.notes
    )
    before = content.pair("", content.read(adapter(alpha=3.0)).layers[CONV])
    after = content.read(written.tensors).layers[CONV]
    assert ALPHA not in after
    change = before.scale * before.up @ before.down
    torch.testing.assert_close(
        after[UP].float().flatten(1) @ after[DOWN].float().flatten(1), change, rtol=2e-3, atol=2e-3
    )


def test_an_alpha_that_is_the_rank_keeps_a_peft_file_exact():
    """Without alphas, alpha is the rank for all."""
    tensors = {
        k: t for k, t in adapter().items() if not k.startswith("text") and not k.endswith(ALPHA)
    }
    same(spell(spell(tensors, dialects.PEFT)[0], dialects.COMFYUI)[0], tensors)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{CONV}.hada_w1_a": torch.ones(2, 2)}, "1 x LoHa"),
        ({f"{CONV}.lokr_w1": torch.ones(2, 2)}, "1 x LoKr"),
        ({f"{CONV}.oft_blocks": torch.ones(2, 2, 2)}, "1 x OFT"),
        ({f"{CONV}.diff": torch.ones(2, 2)}, "1 x full"),
        ({f"{CONV}.lora_up.weight": torch.ones(2, 2)}, "only one half"),
        ({**{f"{CONV}.{k}": t for k, t in pair(torch.Generator(), 6, 5).items()},
          f"{CONV}.dora_scale": torch.ones(1, 5)}, "DoRA by columns"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", [dialects.DIFFUSERS, dialects.PEFT])
def test_what_a_dialect_cannot_hold_is_refused_by_name(dialect, extra, said):
    with pytest.raises(ValueError, match=said):
        spell(extra, dialect)


def test_other_kinds_keep_their_tensors_in_kohyas_dialects():
    tensors = {
        f"{CONV}.{k}": torch.rand(2, 2)
        for k in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    tensors |= {f"{ATTENTION}.to_q.{k}": torch.rand(2, 2) for k in ("lokr_w1", "lokr_w2")}
    tensors["diffusion_model.input_blocks.4.0.in_layers.0.diff_b"] = torch.rand(3)
    for dialect in (dialects.KOHYA, dialects.KOHYA_DIFFUSERS):
        same(spell(spell(tensors, dialect)[0], dialects.COMFYUI)[0], tensors)


def test_a_layer_of_another_model_has_no_name_in_diffusers():
    flux = {
        f"diffusion_model.double_blocks.0.img_attn.qkv.{k}": t for k, t in adapter_of_one().items()
    }
    same(spell(spell(flux, dialects.KOHYA)[0], dialects.COMFYUI)[0], flux)
    with pytest.raises(ValueError, match=r"no name for 1 of the 1 layers.*img_attn.qkv"):
        spell(flux, dialects.DIFFUSERS)


def adapter_of_one():
    return pair(torch.Generator().manual_seed(0), 6, 5)


def test_halves_that_do_not_multiply_are_named():
    roles = adapter_of_one() | {UP: torch.ones(6, 3)}
    with pytest.raises(ValueError, match=r"q: up \[6, 3\] has rank 3 and down \[4, 5\] rank 4"):
        content.pair("q", roles)


def test_two_names_for_one_layer_are_doubled():
    found = content.read({**spell(adapter(), dialects.KOHYA)[0], **adapter()})
    assert len(found.doubled) == len(adapter()) and found.tensors().keys() == adapter().keys()


def test_magnitudes_are_found_again_from_those_of_the_host():
    """W = diag(3, 4), V = W + [[0, 4], [0, 0]] has rows of 5 and 4: m = scale * (5 / 3, 1)."""
    up, down = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 2.0]])
    roles = {UP: up, DOWN: down, MAGNITUDE: torch.tensor([[3.0], [8.0]])}
    given = content.Content(layers={CONV: roles})
    weight = torch.diag(torch.tensor([3.0, 4.0]))
    found, metadata = magnitudes.restored(
        given, {magnitudes.FACT: magnitudes.BY_BASE}, lambda _: weight
    )
    torch.testing.assert_close(found.layers[CONV][MAGNITUDE], torch.tensor([[5.0], [8.0]]))
    assert metadata == {magnitudes.FACT: "m"}
    tensors = {f"{CONV}.{r}": t for r, t in roles.items()}
    with pytest.raises(ValueError, match="connect the model"):
        spell(tensors, dialects.DIFFUSERS, {magnitudes.FACT: magnitudes.BY_BASE})
