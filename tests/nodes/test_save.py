# SPDX-License-Identifier: Apache-2.0
"""Saving through the node: the file, its metadata, its name, and the check of it."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy

MODULE = "diffusion_model.input_blocks.0.0"


@pytest.fixture
def model(comfy):
    from tests.host import tiny

    return tiny.model("sdxl")


def adapter(model, rank=2, fill=0.1, **metadata):
    from graft.adapters.file import AdapterFile

    weight = model.model.state_dict()[f"{MODULE}.weight"]
    tensors = {
        f"{MODULE}.lora_up.weight": torch.full((weight.shape[0], rank, 1, 1), fill),
        f"{MODULE}.lora_down.weight": torch.full((rank, *weight.shape[1:]), fill),
        f"{MODULE}.alpha": torch.tensor(float(rank)),
    }
    return AdapterFile(tensors, metadata, name="my cat")


@pytest.fixture
def save(comfy):
    """Call the node as the host does; afterwards the files are gone."""
    from graft.host.files import paths
    from graft.nodes.save import SaveLora

    def call(adapter, filename="", trigger="", embed_workflow=True, **wires):
        extra = {"workflow": {"id": "w1"}}
        held = SimpleNamespace(unique_id="7", prompt={"1": {}}, extra_pnginfo=extra)
        node = type("SaveLora", (SaveLora,), {"hidden": held})
        output = node.execute(adapter, filename, trigger, embed_workflow, **wires)
        call.lora_model = output.args[1]
        return output.args[0], output.ui["text"][0]

    yield call
    for file in paths.loras_folder().glob("*.safetensors"):
        file.unlink()


def metadata_of(name):
    from safetensors import safe_open

    from graft.host.files import paths

    with safe_open(str(paths.loras_folder() / name), "pt") as file:
        return file.metadata() or {}


def test_the_file_is_listed_by_the_stock_loader_and_checked(save, model):
    import folder_paths

    name, report = save(adapter(model), model=model)
    assert name == "my cat.safetensors"
    assert name in folder_paths.get_filename_list("loras")
    assert "3 of 3 tensors applied, |dW| = " in report
    assert "Saved as my cat.safetensors in output/loras" in report


def test_the_trigger_is_the_datasets_unless_it_is_given(save, model):
    made = adapter(model, **{"modelspec.trigger_phrase": "zorb"})
    first, report = save(made)
    assert "Trigger: zorb" in report
    assert metadata_of(first)["modelspec.trigger_phrase"] == "zorb"
    second, report = save(made, trigger=" ohwx cat ")
    assert "Trigger: ohwx cat" in report
    assert metadata_of(second)["modelspec.trigger_phrase"] == "ohwx cat"
    assert made.metadata == {"modelspec.trigger_phrase": "zorb"}


def test_the_workflow_is_kept_or_not(save, model):
    assert "workflow" in metadata_of(save(adapter(model))[0])
    assert "workflow" not in metadata_of(save(adapter(model), embed_workflow=False)[0])


def test_another_lora_of_this_name_does_not_replace_the_first(save, model):
    assert save(adapter(model))[0] == "my cat.safetensors"
    assert save(adapter(model))[0] == "my cat.safetensors"
    assert save(adapter(model, fill=0.2))[0] == "my cat_00002.safetensors"
    assert save(adapter(model), filename="dog.safetensors")[0] == "dog.safetensors"


def test_a_lora_that_fits_nothing_is_an_error(save, model):
    from graft.adapters.file import AdapterFile

    tensors = {key.replace("input", "inner"): t for key, t in adapter(model).tensors.items()}
    with pytest.raises(ValueError, match="None of the 3 tensors"):
        save(AdapterFile(tensors, name="other"), model=model)


def with_middle(made):
    from dataclasses import replace

    other = {
        key.replace("input_blocks.0.0", "middle_block.1"): t for key, t in made.tensors.items()
    }
    return replace(
        made, tensors={**made.tensors, **other, "bundle_emb.TOK.clip_l": torch.ones(1, 4)}
    )


def test_two_nodes_write_two_parts_of_one_training(save, model):
    from safetensors.torch import load_file

    from graft.host.files import paths

    made, rest = with_middle(adapter(model)), {}
    for blocks in ("input_blocks", "-input_blocks"):
        name, report = save(made, filename=f"part {len(rest)}", blocks=blocks)
        assert f"Layers of {blocks}: 3 tensors" in report
        assert metadata_of(name)["graft.blocks"] == blocks
        kept = load_file(str(paths.loras_folder() / name))
        assert kept.keys() == save.lora_model.keys() and len(kept) == 3
        assert all(torch.equal(kept[key], made.tensors[key]) for key in kept)
        rest |= kept
    assert rest.keys() == made.tensors.keys() - {"bundle_emb.TOK.clip_l"}


def test_without_blocks_the_file_is_as_it_always_was(save, model):
    made = with_middle(adapter(model))
    name, report = save(made, embed_workflow=False)
    assert "Layers of" not in report and "graft.blocks" not in metadata_of(name)
    again, _ = save(made, embed_workflow=False, blocks=" ")
    assert again == name, "equal bytes are the same file"
    assert save.lora_model.keys() == made.tensors.keys() - {"bundle_emb.TOK.clip_l"}


def test_blocks_that_select_nothing_write_nothing(save, model):
    import folder_paths

    before = folder_paths.get_filename_list("loras")
    with pytest.raises(ValueError, match="Did you mean .*input_blocks"):
        save(adapter(model), blocks="inputblocks")
    assert folder_paths.get_filename_list("loras") == before


@pytest.mark.parametrize("filename", ["a/b", "..\\b", "nul", "C:x"])
def test_a_name_that_cannot_be_a_file_is_refused(save, model, filename):
    from graft.nodes.save import SaveLora

    assert "filename" in SaveLora.validate_inputs(filename)
    with pytest.raises(ValueError, match="filename"):
        save(adapter(model), filename=filename)


def test_an_empty_filename_is_the_adapters_name():
    from graft.nodes.save import SaveLora

    assert SaveLora.validate_inputs("") is True
    assert SaveLora.validate_inputs() is True
