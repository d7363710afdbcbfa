# SPDX-License-Identifier: Apache-2.0
"""What a run hands back, against ComfyUI's own nodes: LORA_MODEL, MODEL, the file, and the report."""

import json
import shutil

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

LINEAR = "output_blocks.0.1.transformer_blocks.0.attn2.to_k"
CONV = "input_blocks.1.0.in_layers.2"


@pytest.fixture(autouse=True)
def clean(comfy):
    yield
    shutil.rmtree(comfy / "output" / "loras", ignore_errors=True)


@pytest.fixture(scope="module")
def model():
    from tests.host import inprocess

    inprocess.start()
    return tiny.model("sdxl")


def lora_for(model, names=(LINEAR, CONV), scale: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    lora = {}
    for name in names:
        weight = model.model.diffusion_model.get_submodule(name).weight
        kernel = tuple(weight.shape[2:])
        prefix = f"diffusion_model.{name}"
        ones = (1,) * len(kernel)
        lora[f"{prefix}.lora_up.weight"] = scale * torch.randn(
            (weight.shape[0], 4, *ones), generator=generator
        )
        lora[f"{prefix}.lora_down.weight"] = scale * torch.randn(
            (4, weight.shape[1], *kernel), generator=generator
        )
        lora[f"{prefix}.alpha"] = torch.tensor(2.0)
    return lora


def test_lora_model_holds_normal_copies(model):
    from graft.adapters.file import AdapterFile
    from graft.host.files import result

    with torch.inference_mode():
        source = {k: v.clone().T if v.ndim == 2 else v.clone() for k, v in lora_for(model).items()}
        made = result.lora_state_dict(AdapterFile(source))
    assert list(made) == sorted(source)
    for key, tensor in made.items():
        assert torch.equal(tensor, source[key])
        assert tensor.is_contiguous()
        assert not tensor.is_inference()
        assert tensor.data_ptr() != source[key].data_ptr()
    made[next(iter(made))].add_(1)  # out of inference mode


def test_attached_adapters_become_a_lora_model(model):
    from graft.adapters.attach import Attached
    from graft.adapters.lora import LoRA
    from graft.host.files import result

    attached = Attached(model.model.diffusion_model, LoRA(rank=3, blocks="attn2"), seed=0)
    try:
        made = result.lora_state_dict(attached)
    finally:
        attached.remove()
    report = result.apply(model, made)[1]
    assert report.complete
    assert report.total == 3 * len(attached.layers)


@pytest.mark.parametrize("inference", [True, False])
def test_apply_patches_a_clone_as_the_stock_loader_does(model, inference):
    import comfy.sd

    from graft.host.files import result

    lora = lora_for(model, scale=0.5)
    base = tiny.sample(model, "sdxl")
    with torch.inference_mode(inference):
        patched, report = result.apply(model, lora)
        stock, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert report.text.startswith("6 of 6 tensors applied, |dW| = ")
    ours, theirs = tiny.sample(patched, "sdxl"), tiny.sample(stock, "sdxl")
    assert torch.equal(ours, theirs)
    assert (ours - base).abs().max() > 1e-3
    assert torch.equal(tiny.sample(model, "sdxl"), base)
    assert not model.patches
    for patches in patched.patches.values():
        for _, adapter, *_ in patches:
            assert not any(w.is_inference() for w in adapter.weights if isinstance(w, torch.Tensor))


def test_relative_change_is_the_ratio_of_frobenius_norms(model):
    from graft.host.files import result

    lora = lora_for(model)
    change = size = 0.0
    for name in (LINEAR, CONV):
        weight = model.model.diffusion_model.get_submodule(name).weight.detach().double()
        up = lora[f"diffusion_model.{name}.lora_up.weight"].double().flatten(1)
        down = lora[f"diffusion_model.{name}.lora_down.weight"].double().flatten(1)
        change += float((2.0 / 4 * up @ down).square().sum())
        size += float(weight.square().sum())
    wanted = (change / size) ** 0.5
    assert result.apply(model, lora)[1].relative_change == pytest.approx(wanted, rel=1e-5)
    # The general path, by the host's maths: the same LoRA as a plain difference of weights.
    diff = {}
    for name in (LINEAR, CONV):
        weight = model.model.diffusion_model.get_submodule(name).weight
        up = lora[f"diffusion_model.{name}.lora_up.weight"].flatten(1)
        down = lora[f"diffusion_model.{name}.lora_down.weight"].flatten(1)
        diff[f"diffusion_model.{name}.diff"] = (0.5 * up @ down).reshape(weight.shape)
    report = result.apply(model, diff)[1]
    assert (report.applied, report.total) == (2, 2)
    assert report.relative_change == pytest.approx(wanted, rel=1e-4)


def test_other_adapters_are_measured_by_the_hosts_maths(model):
    from graft.host.files import result

    prefix = f"diffusion_model.{LINEAR}"
    weight = model.model.diffusion_model.get_submodule(LINEAR).weight
    g = torch.Generator().manual_seed(1)
    a, b, c, d = (
        torch.randn(s, generator=g) for s in [(weight.shape[0], 2), (2, weight.shape[1])] * 2
    )
    loha = {f"{prefix}.hada_w{i}": t for i, t in (("1_a", a), ("1_b", b), ("2_a", c), ("2_b", d))}
    report = result.apply(model, loha)[1]
    wanted = ((a @ b) * (c @ d)).norm() / weight.norm()
    assert report.complete
    assert report.relative_change == pytest.approx(float(wanted), rel=1e-4)


def test_a_part_says_n_of_m_and_why(model):
    from graft.host.files import result

    lora = lora_for(model)
    lora["diffusion_model.no.such.layer.lora_up.weight"] = torch.ones(4, 4)
    lora["diffusion_model.no.such.layer.lora_down.weight"] = torch.ones(4, 4)
    lora[f"diffusion_model.{LINEAR}.lora_down.weight"] = torch.ones(4, 7)
    patched, report = result.apply(model, lora)
    assert not report.complete
    assert (report.applied, report.total) == (3, 8)
    assert len(report.misshapen) == 3
    assert set(report.unmatched) == {
        "diffusion_model.no.such.layer.lora_down.weight",
        "diffusion_model.no.such.layer.lora_up.weight",
    }
    assert "3 of 8 tensors applied" in report.text
    assert "The model has no place for diffusion_model.no.such" in report.text
    assert "Another shape than the model's: diffusion_model.output_blocks" in report.text
    assert set(patched.patches) == {f"diffusion_model.{CONV}.weight"}


def test_a_lora_that_fits_nothing_is_an_error(model):
    from graft.host.files import result

    lora = {f"transformer.x{i}.lora_A.weight": torch.ones(4, 4) for i in range(12)}
    with pytest.raises(
        ValueError, match="None of the 12 tensors .* and 4 more. It was trained on another"
    ):
        result.apply(model, lora)


def test_text_encoders_are_patched_too(model):
    from graft.host.files import result

    clip = tiny.clip("sdxl")
    name = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    width = clip.cond_stage_model.get_submodule(name).weight.shape[0]
    lora = lora_for(model) | {
        f"text_encoders.{name}.lora_up.weight": torch.ones(width, 2),
        f"text_encoders.{name}.lora_down.weight": torch.ones(2, width),
    }
    patched, patched_clip, report = result.apply_both(model, clip, lora)
    assert (report.applied, report.total) == (8, 8)
    assert set(patched_clip.patcher.patches) == {f"{name}.weight"}
    assert len(patched.patches) == 2
    assert not clip.patcher.patches
    assert result.apply(model, lora)[1].text.startswith("6 of 8 tensors applied")


def test_core_nodes_take_what_we_give(model, comfy):
    import folder_paths
    from comfy_extras import nodes_train

    import nodes
    from graft.adapters.file import AdapterFile
    from graft.host.files import paths, result

    lora = result.lora_state_dict(lora_for(model, scale=0.5))
    wire = tiny.sample(result.apply(model, lora)[0], "sdxl")
    metadata = result.lora_metadata(lora, model, title="test")
    saved = result.save_lora(paths.loras_folder() / "unit.safetensors", AdapterFile(lora, metadata))

    assert saved.name in folder_paths.get_filename_list("loras")
    stock, _ = nodes.LoraLoader().load_lora(model, None, saved.name, 1.0, 0.0)
    assert torch.equal(tiny.sample(stock, "sdxl"), wire)

    with torch.inference_mode():
        loaded = nodes_train.LoraModelLoader.execute(model, lora, 1.0).args[0]
        nodes_train.SaveLoRA.execute(lora, "loras/by_core")
    assert torch.equal(tiny.sample(loaded, "sdxl"), wire)
    theirs = next((comfy / "output" / "loras").glob("by_core*.safetensors"))
    assert result.self_check(theirs, model).text == result.self_check(saved, model).text


def test_self_check_reads_the_file_again(model, comfy):
    from graft.adapters.file import AdapterFile
    from graft.host.files import paths, result

    saved = result.save_lora(
        paths.loras_folder() / "check.safetensors", AdapterFile(lora_for(model))
    )
    with torch.inference_mode():
        report = result.self_check(saved, model)
    assert report.complete
    assert report.total == 6
    assert not model.patches
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"'check.safetensors' cannot be opened again"):
        result.self_check(saved, model)
    other = tiny.model("flux")
    whole = result.save_lora(
        paths.loras_folder() / "whole.safetensors", AdapterFile(lora_for(model))
    )
    with pytest.raises(ValueError, match="None of the 6 tensors of the LoRA fits Flux"):
        result.self_check(whole, other)


def test_equal_results_are_one_file(model, comfy):
    from graft.adapters.file import AdapterFile
    from graft.host.files import paths, result

    target = paths.loras_folder() / "same.safetensors"
    lora = lora_for(model)
    metadata = result.lora_metadata(lora, model, title="same", facts={"steps": 5, "seed": 0})
    first = result.save_lora(target, AdapterFile(lora, metadata))
    again = result.save_lora(target, AdapterFile(dict(reversed(lora.items())), dict(metadata)))
    assert first == again == target
    other = result.save_lora(target, AdapterFile(lora_for(model, scale=0.2), metadata))
    assert other.name == "same_00002.safetensors"
    with pytest.raises(ValueError, match="cannot be used"):
        result.save_lora(target.with_name("con.safetensors"), AdapterFile(lora))


@pytest.mark.parametrize("disabled", [False, True])
def test_the_workflow_is_embedded_when_the_host_allows_it(model, comfy, monkeypatch, disabled):
    from comfy.cli_args import args

    from graft.adapters.file import AdapterFile
    from graft.host.files import paths, result
    from graft.loaders import lora_file

    monkeypatch.setattr(args, "disable_metadata", disabled)
    saved = result.save_lora(
        paths.loras_folder() / "meta.safetensors",
        AdapterFile(lora_for(model), {"graft.steps": "5"}),
        prompt={"1": {"class_type": "X"}},
        extra_pnginfo={"workflow": {"nodes": []}},
    )
    metadata = lora_file.read(saved).metadata
    assert metadata["graft.steps"] == "5"
    assert ("workflow" in metadata) is ("prompt" in metadata) is (not disabled)
    if not disabled:
        assert json.loads(metadata["workflow"]) == {"nodes": []}


@pytest.mark.parametrize(
    ("family", "architecture", "base", "prediction"),
    [
        ("sd15", "stable-diffusion-v1/lora", "sd_v1", "epsilon"),
        ("sdxl", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "epsilon"),
        ("sdxl_v", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "v"),
        ("sd3", None, "SD3", None),
        ("flux", "flux-1-dev/lora", "flux1", None),
    ],
)
def test_metadata(comfy, family, architecture, base, prediction):
    from graft.host.files import result

    lora = {"diffusion_model.x.lora_up.weight": torch.ones(8, 4)}
    lora |= {"diffusion_model.x.lora_down.weight": torch.ones(4, 8)}
    lora |= {"diffusion_model.x.alpha": torch.tensor(2.0)}
    said = result.lora_metadata(
        lora,
        tiny.model(family),
        title="cat",
        trigger="sks cat",
        resolution=1024,
        facts={"steps": 500, "noise": "model", "ss_seed": 3, "blocks": ["a"]},
    )
    assert all(isinstance(value, str) and value for value in said.values())
    six = (
        "v2",
        "base_model_version",
        "network_module",
        "network_dim",
        "network_alpha",
        "network_args",
    )
    assert {f"ss_{key}" for key in six} <= set(said)
    assert said["ss_network_dim"] == "4"
    assert said["ss_network_alpha"] == "2"
    assert said["ss_base_model_version"] == base
    assert said.get("modelspec.architecture") == architecture
    assert said.get("modelspec.prediction_type") == prediction
    assert said["modelspec.trigger_phrase"] == "sks cat"
    assert said["modelspec.resolution"] == "1024x1024"
    assert said["graft.steps"] == "500"
    assert said["graft.noise"] == "model"
    assert said["graft.blocks"] == '["a"]'
    assert said["ss_seed"] == "3"
