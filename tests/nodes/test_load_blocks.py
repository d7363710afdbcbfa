# SPDX-License-Identifier: Apache-2.0
"""Load LoRA Blocks: exact on partial files, and what was chosen can be saved."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.test_load import everything, lora, loras, write  # noqa: F401 - a fixture

pytestmark = pytest.mark.comfy

LAYERS = [f"output_blocks.{n}.1.transformer_blocks.0.attn1.to_q" for n in (0, 1)]
MIDDLE = "middle_block.1.proj_in"


@pytest.fixture
def load(comfy):
    from graft.nodes.load_blocks import LoadLoraBlocks

    def call(model, file="", blocks="", strengths="", model_by=1.0, clip_by=1.0, **wires):
        node = type("LoadLoraBlocks", (LoadLoraBlocks,), {"hidden": SimpleNamespace(unique_id="7")})
        with torch.inference_mode():
            return node.execute(model, file, blocks, strengths, model_by, clip_by, **wires).args

    return call


@pytest.fixture
def model(comfy):
    from tests.host import tiny

    return tiny.model("sdxl")


def test_chosen_layers_have_their_strengths(load, loras, model):  # noqa: F811
    write(loras, lora(model.model.diffusion_model, [*LAYERS, MIDDLE]))
    said = "output_blocks, -output_blocks.0", "attn1=0.5"
    patched, none, core, adapter, report = load(model, "all.safetensors", *said, model_by=3.0)
    assert none is None and "'all': 2 of 2 tensors applied" in report and "1 of 3 layers" in report
    assert {k: p[0][0] for k, p in patched.patches.items()} == {
        f"diffusion_model.{LAYERS[1]}.weight": 1.5
    }
    assert set(core) == set(adapter.tensors)
    assert {key.split(".lora_")[0] for key in core} == {f"diffusion_model.{LAYERS[1]}"}
    assert adapter.metadata["graft.blocks"] == said[0] and adapter.metadata["ss_network_dim"] == "2"
    with pytest.raises(ValueError, match=r"'all': blocks 'output_blocks.9' matches no layer"):
        load(model, "all.safetensors", "output_blocks.9")
    with pytest.raises(ValueError, match=r"'all': strengths 'middle_block' matches no layer that"):
        load(model, "all.safetensors", "output_blocks", "middle_block=1")


def test_a_part_and_the_rest_are_the_whole(load, model):
    """In every dialect; by the weights that ComfyUI's own loader makes of the whole."""
    import comfy.lora

    from graft.adapters.file import AdapterFile
    from tests.host import dialects

    for dialect in ("kohya diffusers", "diffusers peft", "peft default", "doubled unet"):
        file, oracle = dialects.written(model, dialect)
        wanted = dialects.patched(model, oracle)
        source = AdapterFile(file, {}, "it")
        one, _, _, first, _ = load(model, blocks="output_blocks", adapter=source)
        two, _, _, second, _ = load(one, blocks="-output_blocks", adapter=source)
        assert not set(first.tensors) & set(second.tensors)
        assert len(first.tensors) + len(second.tensors) == len(file)
        assert all("output_blocks" in key for key in first.tensors)
        weights = model.model.state_dict()
        assert len([key for key in two.patches if key.endswith(".weight")]) == len(wanted)
        for module, made in wanted.items():
            key = f"diffusion_model.{module}.weight"
            before = weights[key].detach().float().clone()
            assert torch.equal(comfy.lora.calculate_weight(two.patches[key], before, key), made)


def test_the_part_that_is_saved_loads_as_the_part(load, loras, model):  # noqa: F811
    from graft.adapters.file import AdapterFile
    from tests.host import dialects

    file, _ = dialects.written(model, "diffusers peft")
    patched, _, _, adapter, _ = load(
        model, blocks="middle_block", adapter=AdapterFile(file, {}, "it")
    )
    name = write(loras, adapter.tensors, "part.safetensors")
    again, _, _, same, report = load(model, name)
    assert f"{len(adapter.tensors)} of {len(adapter.tensors)} tensors applied" in report
    assert set(again.patches) == set(patched.patches)
    assert all(torch.equal(same.tensors[key], tensor) for key, tensor in adapter.tensors.items())


def test_text_encoders_words_and_bottlenecks(load, model):
    from graft.adapters.file import AdapterFile
    from tests.host import tiny

    clip = tiny.clip("sdxl")
    file = AdapterFile(everything(model, clip), {}, "it")
    patched, bound, core, adapter, report = load(model, clip=clip, adapter=file)
    assert set(adapter.tensors) == set(file.tensors) and "new words: zork" in report
    assert bound.patcher.patches and patched.patches and patched.injections
    assert not any("zork" in key or "bottleneck" in key for key in core)
    _, bound, _, adapter, report = load(model, blocks="output_blocks.0.1", clip=clip, adapter=file)
    assert bound.patcher.patches and "new words: zork" in report
    assert not any("middle_block" in key for key in adapter.tensors)
    assert any("bottleneck" in key for key in adapter.tensors)
    _, bound, _, adapter, _ = load(model, clip_by=0.0, clip=clip, adapter=file)
    assert not bound.patcher.patches and not any("zork" in key for key in adapter.tensors)
    _, none, _, adapter, report = load(model, adapter=file)
    assert none is None and "tensors have no place here" in report


def test_a_changed_file_is_read_anew_and_typos_are_refused(loras, model):  # noqa: F811
    from graft.nodes.load_blocks import LoadLoraBlocks

    name = write(loras, lora(model.model.diffusion_model, LAYERS))
    before = LoadLoraBlocks.fingerprint_inputs(name)
    write(loras, lora(model.model.diffusion_model, [*LAYERS, MIDDLE]))
    assert LoadLoraBlocks.fingerprint_inputs(name) != before
    asked = inspect.signature(LoadLoraBlocks.fingerprint_inputs).parameters
    assert set(asked) == set(inspect.signature(LoadLoraBlocks.execute).parameters)
    check = LoadLoraBlocks.validate_inputs
    assert check(name, "a=1") is True and check(None, None) is True
    assert "must read pattern=number" in check(None, "a=x")
    assert "Unknown LoRA file 'no.safetensors'" in check("no.safetensors", "")
