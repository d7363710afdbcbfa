# SPDX-License-Identifier: Apache-2.0
"""For the real layouts, without memory: ComfyUI takes the key of every layer that can be trained."""

import pytest
import torch

pytestmark = pytest.mark.comfy

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
CONFIGS = {
    "SD15": UNET
    | {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "context_dim": 768,
        "num_heads": 8,
    },
    "SDXL": UNET
    | {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "context_dim": 2048,
        "num_head_channels": 64,
    },
    "SD3": {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "depth": 24,
        "input_size": None,
        "adm_in_channels": 2048,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 1536},
        },
        "num_patches": 36864,
        "pos_embed_max_size": 192,
        "pos_embed_scaling_factor": None,
        "qk_norm": None,
        "x_block_self_attn_layers": [],
    },
    "Flux": {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 768,
        "context_in_dim": 4096,
        "hidden_size": 3072,
        "mlp_ratio": 4.0,
        "num_heads": 24,
        "depth": 19,
        "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    },
}
# Transformer blocks (16 in SD 1.5, 70 in SDXL) times q, k, v and out of self- and cross-attention.
ATTENTION_LAYERS = {"SD15": 16 * 8, "SDXL": 70 * 8}


def build(name: str):
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models

    config = dict(CONFIGS[name])
    if name == "Flux" and "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:
        config["txt_ids_dims"] = []
    made = getattr(comfy.supported_models, name)(config)
    made.set_inference_dtype(torch.bfloat16, None)
    with torch.device("meta"):
        model = made.get_model({}, "", device="meta")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def weights_of(module: torch.nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``up`` and ``down`` of rank 4."""
    if hasattr(module, "in_features"):
        return (module.out_features, 4), (4, module.in_features)
    kernel = tuple(module.kernel_size)
    return (module.out_channels, 4, *[1] * len(kernel)), (4, module.in_channels, *kernel)


def fake_lora(root: torch.nn.Module, names) -> dict[str, torch.Tensor]:
    lora = {}
    for name in names:
        up, down = weights_of(root.get_submodule(name))
        lora[f"diffusion_model.{name}.lora_up.weight"] = torch.empty(up, device="meta")
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.empty(down, device="meta")
        lora[f"diffusion_model.{name}.alpha"] = torch.tensor(4.0)
    return lora


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trained_key_is_taken_and_none_is_left_over(name):
    import comfy.lora

    from graft.adapters.targets import targets
    from graft.host.files import result

    patcher = build(name)
    root = patcher.model.diffusion_model
    assert all(p.is_meta for p in root.parameters())
    chosen = targets(root, "all")
    matrices = {
        key.removesuffix(".weight")
        for key, weight in root.state_dict().items()
        if key.endswith(".weight") and weight.ndim in (2, 4)
    }
    assert set(chosen) == matrices

    lora = fake_lora(root, chosen)
    patched, report = result.apply(patcher, lora)
    assert report.complete
    assert report.total == 3 * len(chosen)
    assert (report.unmatched, report.misshapen, report.relative_change) == ((), (), None)
    assert set(patched.patches) == {f"diffusion_model.{n}.weight" for n in chosen}

    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    loaded = comfy.lora.load_lora(lora, key_map)
    taken = set().union(*(adapter.loaded_keys for adapter in loaded.values()))
    assert taken == set(lora)
    assert len(loaded) == len(chosen)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("blocks", ["attention", "cross-attention"])
def test_presets_choose_attention(name, blocks):
    from graft.adapters.targets import targets

    root = build(name).model.diffusion_model
    if blocks == "cross-attention" and name in ("SD3", "Flux"):
        with pytest.raises(ValueError, match="matches no layer"):
            targets(root, blocks)
        return
    chosen = targets(root, blocks)
    assert set(chosen) < set(targets(root, "all"))
    if name in ATTENTION_LAYERS:
        assert len(chosen) == ATTENTION_LAYERS[name] // (2 if blocks == "cross-attention" else 1)


def test_b_lora_and_its_parts_are_the_layers_of_the_paper():
    """q, k, v and out of two attentions in ten transformer blocks: 80 layers of a block, 28,180,480 numbers at rank 64.

    Custom Diffusion trains two of them in each of the 70 cross-attentions.
    """
    from graft.adapters.attach import Attached
    from graft.adapters.lora import LoRA
    from graft.adapters.targets import targets

    network = build("SDXL").model.diffusion_model
    content, style, both = (
        targets(network, f"b-lora{part}") for part in (" content", " style", "")
    )
    assert len(content) == len(style) == 80 and set(both) == {*content, *style}
    assert {name.split(".")[1] for name in content} == {"0"}
    assert all(name.endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in both)
    with torch.device("meta"):
        attached = Attached(network, LoRA(64, blocks="b-lora"), 0, "meta")
    assert sum(p.numel() for p in attached.parameters().values()) == 28_180_480
    assert len(targets(network, "cross-attention kv")) == 140
    with pytest.raises(ValueError, match="matches no layer"):
        targets(build("SD3").model.diffusion_model, "b-lora")


@pytest.mark.parametrize("name", ["SD15", "SDXL"])
def test_layers_are_found_by_the_names_that_other_programs_give_them(name):
    """The host's own maps are the oracle: each of diffusers' and kohya's names selects the one layer it stands for."""
    import comfy.lora
    import comfy.utils

    from graft.adapters import spellings
    from graft.adapters.targets import matching, targets

    patcher = build(name)
    names = targets(patcher.model.diffusion_model, "all")
    known = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
    pairs = {
        other.removesuffix(".weight"): own.removesuffix(".weight")
        for other, own in known.items()
        if own.removesuffix(".weight") in names
    }
    assert len(pairs) > 200
    spelled = {spellings.diffusers(own) for own in pairs.values()}
    assert spelled == {other for other in pairs if not other.startswith("class_embedding")}
    assert all(pairs[other] == own for own in names if (other := spellings.diffusers(own)))
    chosen = ["down_blocks.1.attentions.1.proj_in", "up_blocks.1.upsamplers.0.conv", "conv_out"]
    for other in chosen:
        assert matching(names, other) == {pairs[other]}
        assert matching(names, f"unet.{other}") == {pairs[other]}
        assert matching(names, f"lora_unet_{other.replace('.', '_')}") == {pairs[other]}
    for kohya, own in comfy.lora.model_lora_keys_unet(patcher.model, {}).items():
        module = own.removesuffix(".weight") if isinstance(own, str) else ""
        module = module.removeprefix("diffusion_model.")
        if kohya.startswith("lora_unet_") and module in chosen:
            assert matching(names, kohya) == {module}
    level = 0 if name == "SDXL" else 1  # SD 1's deepest level has no attention
    assert matching(names, f"up_blocks.{level}.attentions.1") == {
        n for n in names if n.startswith(f"output_blocks.{3 * level + 1}.1.")
    }
    assert matching(names, "lora_unet_output_blocks_1_0") == {
        n for n in names if n.startswith("output_blocks.1.0.")
    }
    assert matching(names, "up_blocks.*.attentions.1.*.attn2") == {
        n
        for n in names
        for i in (1, 4, 7, 10)
        if n.startswith(f"output_blocks.{i}.1.") and ".attn2." in n
    }
