# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of LoRA files without a host: spellings, parts of fused weights, and what is refused."""

import json

import pytest
import torch

from graft.loaders import dialects
from graft.loaders.dialects import Place

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = Q.replace("to_q", "to_out.0")
PLACES = {
    f"lora_unet_{Q.replace('.', '_')}": Place("q", (6, 5)),
    f"lora_unet_{OUT.replace('.', '_')}": Place("out", (6, 5)),
    "diffusion_model.conv": Place("conv", (4, 27)),
    "diffusion_model.norm": Place("norm", None),
}


def pair(name, ends=(".lora_up.weight", ".lora_down.weight"), shape=(6, 5), rank=2):
    g = torch.Generator().manual_seed(len(name))
    up, down = torch.randn(shape[0], rank, generator=g), torch.randn(rank, shape[1], generator=g)
    return {f"{name}{ends[0]}": up, f"{name}{ends[1]}": down}


AB, AB_NAMED, OLD = (
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_B.cat.weight", ".lora_A.cat.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        (f"lora_unet_{Q.replace('.', '_')}", (".lora_up.weight", ".lora_down.weight")),
        (f"unet.{Q}", AB),
        (f"unet.{Q}", (".lora_B", ".lora_A")),
        (f"unet.{Q}", (".lora.up.weight", ".lora.down.weight")),
        (f"unet.{Q}", (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight")),
        (f"unet.unet.{Q.replace('.to_', '.processor.to_')}", OLD),
        (f"base_model.model.{Q}", AB_NAMED),
        (f"unet.base_model.model.{Q}", AB),
        (Q, AB),
        (f"lycoris_{Q.replace('.', '_')}", OLD),
    ],
)
def test_every_spelling_is_the_same_layer(name, ends):
    tensors = pair(name, ends)
    places = PLACES | {f"lycoris_{Q.replace('.', '_')}": Place("q", (6, 5))}
    found = dialects.read(tensors, {}, places)
    assert list(found.pairs) == ["q"]
    assert torch.equal(found.pairs["q"].up, tensors[f"{name}{ends[0]}"])
    assert (found.pairs["q"].rank, found.pairs["q"].scale) == (2, 1.0)
    assert dialects.is_lora(tensors)


@pytest.mark.parametrize(
    "name", [f"unet.{OUT}", f"unet.{OUT[:-2]}".replace(".to_", ".processor.to_")]
)
def test_the_output_projection_has_two_names(name):
    assert list(
        dialects.read(pair(name, OLD if "processor" in name else AB), {}, PLACES).pairs
    ) == ["out"]


def test_parts_of_a_fused_weight_add_up_exactly():
    """q and k of rank 1 as rows 0-1 and 2-3 of one weight: block rows 2 * u d and 3 * u d, of rank 2."""
    places = {"q": Place("qkv", (6, 2), (0, 0, 2)), "k": Place("qkv", (6, 2), (0, 2, 2))}
    tensors = {
        "q.lora_up.weight": torch.tensor([[1.0], [2.0]]),
        "q.lora_down.weight": torch.tensor([[1.0, 0.0]]),
        "q.alpha": torch.tensor(2.0),
        "k.lora_up.weight": torch.tensor([[5.0], [7.0]]),
        "k.lora_down.weight": torch.tensor([[0.0, 1.0]]),
        "k.alpha": torch.tensor(3.0),
    }
    made = dialects.read(tensors, {}, places).pairs["qkv"]
    wanted = torch.tensor([[2.0, 0], [4, 0], [0, 15], [0, 21], [0, 0], [0, 0]])
    assert torch.equal(made.scale * made.up @ made.down, wanted)
    assert made.rank == 2
    beyond = {"q": Place("qkv", (6, 2), (0, 5, 2))}
    assert dialects.read(pair("q", shape=(2, 2)), {}, beyond).misshapen


def test_columns_and_permuted_rows_are_placed():
    places = {
        "right": Place("a", (2, 5), (1, 3, 2)),
        "swapped": Place("b", (2, 2), None, lambda rows: rows.flip(0)),
    }
    found = dialects.read(pair("right", shape=(2, 2)) | pair("swapped", shape=(2, 2)), {}, places)
    right, source = found.pairs["a"], pair("right", shape=(2, 2))
    assert not bool((right.up @ right.down)[:, :3].any())
    assert torch.equal(right.down[:, 3:], source["right.lora_down.weight"])
    assert torch.equal(
        found.pairs["b"].up, pair("swapped", shape=(2, 2))["swapped.lora_up.weight"].flip(0)
    )


def test_a_core_is_folded_as_its_definition_says():
    """LyCORIS: dW[i, j, ...] = sum over m, n of up[i, m] mid[m, n, ...] down[n, j], times alpha / rank."""
    g = torch.Generator().manual_seed(0)
    up, mid, down = (
        torch.randn(s, generator=g) for s in ((4, 2, 1, 1), (2, 2, 3, 3), (2, 3, 1, 1))
    )
    names = ("lora_up", "lora_mid", "lora_down")
    tensors = {
        f"diffusion_model.conv.{n}.weight": t for n, t in zip(names, (up, mid, down), strict=True)
    }
    tensors["diffusion_model.conv.alpha"] = torch.tensor(1.0)
    made = dialects.read(tensors, {}, PLACES).pairs["conv"]
    wanted = 0.5 * torch.einsum("im,mnyx,nj->ijyx", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    torch.testing.assert_close((made.scale * made.up @ made.down).reshape(4, 3, 3, 3), wanted)


def test_what_does_not_fit_is_sorted():
    tensors = {
        **pair(f"unet.{Q}", AB),
        **pair("unet.elsewhere"),
        **pair("diffusion_model.conv", shape=(4, 9)),
        **pair("diffusion_model.norm"),
        **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        "lora_te2_x.hada_w1_a": torch.ones(2, 2),
        "unet.other.hada_w1_a": torch.ones(2, 2),
        "unet.zero.diff_b": torch.zeros(3),
        "unet.some.diff_b": torch.ones(3),
        "unet.lonely.alpha": torch.tensor(1.0),
    }
    found = dialects.read(tensors, {}, PLACES)
    assert list(found.pairs) == ["q"]
    assert found.homeless == ["unet.elsewhere"]
    assert found.misshapen == ["diffusion_model.conv (4, 9) for (4, 27)"]
    assert sorted(found.text) == [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_x.hada_w1_a",
    ]
    norm = {"diffusion_model.norm.lora_up.weight", "diffusion_model.norm.lora_down.weight"}
    assert set(found.other) == norm | {
        "unet.other.hada_w1_a",
        "unet.some.diff_b",
        "unet.lonely.alpha",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"unet.{Q}.lora_A.weight": torch.full((2, 5), torch.nan)}, "not finite"),
        ({f"unet.{Q}.lora_A.weight": torch.full((2, 5), torch.inf)}, "not finite"),
        ({f"unet.{Q}.lora_A.weight": torch.ones(3, 5)}, r"\[6, 2\].*\[3, 5\]"),
        ({f"unet.{Q}.lora_A.weight": torch.ones(5)}, r"shape \[5\]"),
        ({f"unet.{Q}.lora_A.weight": torch.ones(2, 5, dtype=torch.int32)}, "int32"),
        (
            {
                f"unet.{Q}.lora_A.weight": torch.ones(0, 5),
                f"unet.{Q}.lora_B.weight": torch.ones(6, 0),
            },
            "multiply",
        ),
        ({f"unet.{Q}.alpha": torch.ones(2)}, "not one number"),
        ({f"unet.{Q}.alpha": torch.tensor(torch.nan)}, "alpha"),
        ({f"unet.{Q}.lora_mid.weight": torch.ones(3, 3, 3, 3)}, "lora_mid"),
        ({f"unet.{OUT}.lora_A.weight": torch.ones(2, 5)}, "one half"),
        (pair(f"base_model.model.{Q}", AB), "twice"),
        (pair(f"unet.{Q}", AB_NAMED), "twice"),
        (pair(f"unet.{Q}", (".lora_B.dog.weight", ".lora_A.dog.weight")), "twice"),
    ],
)
def test_broken_files_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dialects.read(pair(f"unet.{Q}", AB) | changes, {}, PLACES)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        '{"unet.lora_alpha": "many"}',
        '{"unet.lora_alpha": 1e300}',
        "[" * 100_000,
        '{"unet.lora_alpha": NaN}',
    ],
)
def test_broken_settings_are_named(config):
    with pytest.raises(ValueError, match="metadata"):
        dialects.read(pair(f"unet.{Q}", AB), {"lora_adapter_metadata": config}, PLACES)


@pytest.mark.parametrize(
    "config", ["[]", "7", "null", '{"unet.alpha_pattern": [1]}', '{"text_encoder.lora_alpha": 9}']
)
def test_settings_of_something_else_change_nothing(config):
    found = dialects.read(pair(f"unet.{Q}", AB), {"lora_adapter_metadata": config}, PLACES)
    assert found.pairs["q"].scale == 1.0


def test_a_tensor_of_alpha_goes_before_the_settings():
    tensors = pair(f"unet.{Q}", AB) | {f"unet.{Q}.alpha": torch.tensor([4.0])}
    config = json.dumps({"unet.lora_alpha": 100})
    assert dialects.read(tensors, {"lora_adapter_metadata": config}, PLACES).pairs["q"].scale == 2.0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_other_precisions_are_read(dtype):
    tensors = {key: t.to(dtype) for key, t in pair(f"unet.{Q}", AB).items()}
    made = dialects.read(tensors, {}, PLACES).pairs["q"]
    assert made.up.dtype == torch.float32
    assert torch.equal(made.up, tensors[f"unet.{Q}.lora_B.weight"].float())


def test_many_strange_names_take_no_time():
    tensors = {f"{'a.' * 50}{i}.lora_A.x.y": torch.zeros(1) for i in range(20_000)}
    assert len(dialects.read(tensors, {}, PLACES).other) == 20_000
    assert not dialects.is_lora(tensors)
