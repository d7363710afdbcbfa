# SPDX-License-Identifier: Apache-2.0
"""Folders as PEFT's save_pretrained writes them, alpha other than the rank: the oracle is PEFT's own layer."""

import copy
import json

import peft
import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

LINEAR, CONV = "output_blocks.0.1.proj_in", "input_blocks.1.0.in_layers.2"
CONFIGS = {
    "lora": lambda **on: peft.LoraConfig(r=4, lora_alpha=10, **on),
    "rslora": lambda **on: peft.LoraConfig(r=4, lora_alpha=10, use_rslora=True, **on),
    "alpha pattern": lambda **on: peft.LoraConfig(
        r=4, lora_alpha=10, alpha_pattern={LINEAR: 3}, **on
    ),
    "lokr, full": lambda **on: peft.LoKrConfig(r=64, alpha=24, **on),
    "lokr, low": lambda **on: peft.LoKrConfig(r=2, alpha=3, **on),
    "lokr, both low": lambda **on: peft.LoKrConfig(r=2, alpha=3, decompose_both=True, **on),
    "lokr, full, pattern": lambda **on: peft.LoKrConfig(
        r=64, alpha=24, rank_pattern={LINEAR: 48}, alpha_pattern={LINEAR: 6}, **on
    ),
    "loha": lambda **on: peft.LoHaConfig(r=3, alpha=7, **on),
}


def saved(model, folder, config):
    """A folder of PEFT's, and dW of each layer as PEFT has it."""
    root = copy.deepcopy(model.model.diffusion_model).float()
    made = peft.get_peft_model(root, config(target_modules=[LINEAR, CONV]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_" in name or "lokr_" in name or "hada_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    made.save_pretrained(folder)
    return {
        name: made.base_model.model.get_submodule(name).get_delta_weight("default").detach()
        for name in (LINEAR, CONV)
    }


def changes(model, patched):
    """dW of each layer by ComfyUI's own application of the patches."""
    import comfy.lora

    made = {}
    for key, patches in patched.patches.items():
        weight = model.model.state_dict()[key]
        zeros = torch.zeros_like(weight, dtype=torch.float32)
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        made[name] = comfy.lora.calculate_weight(patches, zeros, key)
    return made


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        off = float((found[name] - expected).norm() / expected.norm())
        assert off <= 1e-6, (name, off)


@pytest.mark.parametrize("what", CONFIGS)
def test_the_change_is_that_of_pefts_layer(tmp_path, what):
    from graft.host.files import loading, parts
    from graft.host.files.strengths import WHOLE
    from graft.loaders import lora_file
    from graft.loaders.source import on_disk

    model = tiny.model("sdxl")
    wanted = saved(model, tmp_path, CONFIGS[what])
    path = tmp_path / "adapter_model.safetensors"
    file = lora_file.read(path)
    patched, _, report = loading.load(model, None, file, WHOLE)
    assert f"{len(file.tensors)} of {len(file.tensors)} tensors applied" in report
    check(changes(model, patched), wanted)
    part = parts.take(on_disk(path), model, lambda names: names)
    check(changes(model, loading.load(model, None, part.file, WHOLE, part.places)[0]), wanted)


@pytest.mark.parametrize("what", CONFIGS)
def test_what_is_converted_keeps_the_change(tmp_path, what):
    from graft.host.files import conversion, result
    from graft.loaders import lora_file
    from graft.loaders.writing import dialects

    model = tiny.model("sdxl")
    wanted = saved(model, tmp_path, CONFIGS[what])
    file = lora_file.read(tmp_path / "adapter_model.safetensors")
    made = conversion.convert(file, dialects.KOHYA)
    patched, _ = result.apply(model, made.written.tensors)
    check(changes(model, patched), wanted)


def test_settings_that_cannot_be_read_are_named_and_those_of_other_files_do_not_count(tmp_path):
    from graft.loaders import lora_file

    saved(tiny.model("sdxl"), tmp_path, CONFIGS["lora"])
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    other = path.rename(tmp_path / "cat.safetensors")
    assert lora_file.read(other).metadata == {"format": "pt"}
    other.rename(path)
    assert json.loads(lora_file.metadata(path)["lora_adapter_metadata"])["lora_alpha"] == 10
    config.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json.* is no JSON"):
        lora_file.read(path)
    config.write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json.* holds no settings"):
        lora_file.read(path)
    config.unlink()
    assert lora_file.read(path).metadata == {"format": "pt"}


def test_new_settings_are_another_file(tmp_path, monkeypatch):
    from graft.host.files import lora_files

    saved(tiny.model("sdxl"), tmp_path, CONFIGS["lora"])
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    monkeypatch.setattr(lora_files, "path", lambda name: path)
    before = lora_files.fingerprint("it")
    assert lora_files.fingerprint("it") == before
    config.write_text("{}", encoding="utf-8")
    assert lora_files.fingerprint("it") != before
