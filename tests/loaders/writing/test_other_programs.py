# SPDX-License-Identifier: Apache-2.0
"""What is written is read by the programs it is for, with their own code: ComfyUI, diffusers, PEFT."""

import json
from types import SimpleNamespace

import pytest
import torch

from graft.loaders import alphas
from graft.loaders.roles import ALPHA, DOWN, MAGNITUDE, UP
from graft.loaders.writing import content, dialects


def layers_of(network, rank=2):
    """One small tensor for each half: the programs look at names."""
    from graft.adapters.targets import targets

    made = {}
    for i, name in enumerate(targets(network, "all")):
        ones = (1,) * (network.get_submodule(name).weight.ndim - 2)
        start = f"diffusion_model.{name}"
        made[f"{start}.lora_up.weight"] = torch.full((3, rank, *ones), float(i))
        made[f"{start}.lora_down.weight"] = torch.full((rank, 5, *ones), float(i))
        made[f"{start}.alpha"] = torch.tensor(float(rank))
    return made


@pytest.mark.comfy
@pytest.mark.parametrize("family", ["SD15", "SDXL"])
@pytest.mark.parametrize("dialect", dialects.DIALECTS)
def test_every_layer_of_a_full_unet_is_read_by_comfyui(family, dialect):
    """By its own map of names; PEFT's start is taken off, which it knows of SD 3 only."""
    import comfy.lora

    from tests.host.files.test_keys import build

    model = build(family)
    tensors = layers_of(model.model.diffusion_model)
    made = dialects.write(content.read(tensors), {}, dialect).tensors
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    if dialect in (dialects.PEFT, dialects.DIFFUSERS):
        # The host knows diffusers' names with underscores, and our reader says the same of them.
        made = {spelled_flat(key): tensor for key, tensor in made.items()}
    read = comfy.lora.load_lora(made, places, log_missing=False)
    assert len(read) == len(tensors) // 3
    for i, name in enumerate(key for key in tensors if key.endswith(UP)):
        patch = read[name.replace(f".{UP}", ".weight")]
        assert float(patch.weights[0].flatten()[0]) == i, name


def spelled_flat(key):
    name, end = key.rsplit(".lora_", 1)
    name = name.removeprefix("base_model.model.").removeprefix("unet.")
    return f"lora_unet_{name.replace('.', '_')}.lora_{end}"


@pytest.mark.comfy
def test_text_encoders_are_read_by_comfyui(comfy):
    import comfy.lora

    from tests.host import tiny

    clip = tiny.clip("sdxl")
    root = clip.cond_stage_model
    names = [
        f"text_encoders.{key.removesuffix('.weight')}"
        for key in root.state_dict()
        if ".layers." in key and key.endswith(("_proj.weight", "fc1.weight", "fc2.weight"))
    ]
    tensors = {
        f"{n}.{role}": torch.ones(2, 2)
        for n in names
        for role in ("lora_up.weight", "lora_down.weight")
    }
    for dialect in (dialects.COMFYUI, dialects.KOHYA, dialects.DIFFUSERS):
        made = dialects.write(content.read(tensors), {}, dialect).tensors
        places = comfy.lora.model_lora_keys_clip(root, {})
        assert len(comfy.lora.load_lora(made, places, log_missing=False)) == len(names), dialect


@pytest.fixture
def unet():
    """A UNet of SDXL's layout in diffusers, tiny."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=8,
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=8,
    )


def adapter(
    unet, dora=False, alpha=3.0, kinds=("attn", "ff.net", "proj_in", "conv1", "conv_shortcut")
):
    """A random adapter of the UNet, by generic names, ranks differing; and its dW by diffusers' names."""
    from graft.loaders.writing.names import Spelling

    spelling, g = Spelling(), torch.Generator().manual_seed(2)
    tensors, changes = {}, {}
    for i, (name, module) in enumerate(unet.named_modules()):
        if (
            not hasattr(module, "weight")
            or module.weight.ndim < 2
            or not any(k in name for k in kinds)
        ):
            continue
        rank, weight = 2 + (i % 5 == 0), module.weight
        up = 0.1 * torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=g)
        down = torch.randn(rank, *weight.shape[1:], generator=g)
        start = f"diffusion_model.{spelling.own(name)}"
        made = {UP: up, DOWN: down, ALPHA: torch.tensor(alpha)}
        if dora:
            made[MAGNITUDE] = 1 + torch.rand(len(up), *(1,) * (up.ndim - 1), generator=g)
        tensors |= {f"{start}.{role}": t for role, t in made.items()}
        changes[name] = (alpha / rank) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return tensors, changes


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_loads_what_is_written_for_it(unet, dora):
    """With its own loader of pipelines; a DoRA's weight is m V / |V|, which its own export to kohya's loses."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    tensors, changes = adapter(unet, dora, kinds=("attn",) if dora else ("attn", "ff.net", "conv1"))
    made = dialects.write(content.read(tensors), {}, dialects.DIFFUSERS)
    config = json.loads(made.metadata[alphas.CONFIG])
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(
        dict(made.tensors), None, unet, adapter_name="one", metadata=config
    )
    check_layers(unet, changes, tensors, "one", dora)


def check_layers(unet, changes, tensors, adapter_name, dora):
    from graft.loaders.writing.names import Spelling

    layers = {n: m for n, m in unet.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    assert layers.keys() == changes.keys()
    for name, layer in layers.items():
        change = layer.get_delta_weight(adapter_name).detach()
        torch.testing.assert_close(change, changes[name], rtol=1e-5, atol=1e-6)
        if dora:
            weight = layer.get_base_layer().weight.detach()
            v = (weight + change).flatten(1)
            key = f"diffusion_model.{Spelling().own(name)}.{MAGNITUDE}"
            wished = tensors[key].reshape(-1, 1) * v / v.norm(dim=1, keepdim=True)
            layer.merge(adapter_names=[adapter_name])
            merged = layer.get_base_layer().weight.detach().flatten(1).clone()
            layer.unmerge()
            torch.testing.assert_close(merged, wished, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dialect", [dialects.KOHYA, dialects.KOHYA_DIFFUSERS])
def test_diffusers_converts_kohyas_files_to_what_we_write_for_it(unet, dialect):
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensors, _ = adapter(unet)
    made = dialects.write(content.read(tensors), {}, dialect).tensors
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(made), SimpleNamespace(layers_per_block=2))
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    theirs = {
        key.replace(".processor", "").replace("to_out.lora", "to_out.0.lora"): tensor
        for key, tensor in convert_unet_state_dict_to_peft(converted).items()
    }
    ours = dialects.write(content.read(tensors), {}, dialects.DIFFUSERS).tensors
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert set(alphas.values()) == {3.0}


def test_diffusers_own_export_of_a_dora_loses_its_magnitudes_and_ours_does_not(unet):
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    tensors, _ = adapter(unet, dora=True, kinds=("attn",))
    made = dialects.write(content.read(tensors), {}, dialects.DIFFUSERS)
    theirs = convert_state_dict_to_kohya(dict(made.tensors))
    assert not any(key.endswith("dora_scale") for key in theirs)
    back = content.read(made.tensors, made.metadata)
    ours = dialects.write(back, {}, dialects.KOHYA).tensors
    scales = [key for key in ours if key.endswith("dora_scale")]
    assert len(scales) == len(tensors) // 4
    assert all(
        ours[key].shape == ours[key.replace("dora_scale", UP)].shape[:1] + (1,) for key in scales
    )


def test_peft_loads_what_is_written_for_it():
    """Into a model of its own, with the rank of each layer; alpha is in the tensors."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=8,
        norm_num_groups=4,
    )
    tensors, changes = adapter(unet, kinds=("attn1",))
    made = dialects.write(content.read(tensors), {}, dialects.PEFT)
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in made.tensors.items()
        if key.endswith("lora_A.weight")
    }
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks
    )
    model = get_peft_model(unet, config)
    result = set_peft_model_state_dict(model, made.tensors)
    assert not result.unexpected_keys
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert layers.keys() == changes.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.get_delta_weight("default").detach(), changes[name])
