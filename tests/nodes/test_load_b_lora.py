# SPDX-License-Identifier: Apache-2.0
"""Load B-LoRA: one block of each file, whatever else it holds."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.test_load import lora, loras, write  # noqa: F401 - a fixture

pytestmark = pytest.mark.comfy

BLOCKS = [f"output_blocks.{n}.1.transformer_blocks.0.attn1.to_q" for n in (0, 1)]
KEYS = [f"diffusion_model.{name}.weight" for name in BLOCKS]
ELSE = "middle_block.1.proj_in"
ONCE, SQUARED = "once", "squared (as the reference)"


@pytest.fixture
def load(comfy):
    from graft.nodes.load_b_lora import LoadBLora

    def call(model, content="none", style="none", strengths=(1.0, 1.0), mode=ONCE, **wires):
        node = type("LoadBLora", (LoadBLora,), {"hidden": SimpleNamespace(unique_id="7")})
        with torch.inference_mode():
            return node.execute(
                model, content, strengths[0], style, strengths[1], mode, **wires
            ).args

    return call


@pytest.fixture
def model(comfy):
    from tests.host import tiny

    return tiny.model("sdxl")


def given(patched):
    return {key: [patch[0] for patch in patches] for key, patches in patched.patches.items()}


def test_content_and_style_come_from_their_files(load, loras, model):  # noqa: F811
    root = model.model.diffusion_model
    whole = lora(root, [*BLOCKS, ELSE])
    kohya = {}
    for key, tensor in whole.items():
        name, _, half = key.removeprefix("diffusion_model.").partition(".lora_")
        kohya[f"lora_unet_{name.replace('.', '_')}.lora_{half}"] = 2 * tensor
    write(loras, whole, "a.safetensors")
    write(loras, kohya, "b.safetensors")
    patched, report = load(model, "a.safetensors", "b.safetensors", (0.5, 0.25))
    assert given(patched) == {KEYS[0]: [0.5], KEYS[1]: [0.25]}
    for key, factor in zip(KEYS, (1, 2), strict=True):
        up = whole[key.replace(".weight", ".lora_up.weight")]
        assert torch.equal(patched.patches[key][0][1].weights[0], factor * up)
    first, second = report.splitlines()
    assert first.startswith("content of 'a': 2 of 2 tensors applied, |dW| = ")
    assert first.endswith("1 of 3 layers, dW times 0.5")
    assert second.startswith("style of 'b': 2 of 2") and second.endswith("dW times 0.25")
    assert not model.patches


def test_the_reference_multiplies_both_halves(load, loras, model):  # noqa: F811
    """Up and down each times 1.1 is a change times 1.21."""
    import comfy.lora

    tensors = lora(model.model.diffusion_model, BLOCKS)
    write(loras, tensors, "a.safetensors")
    patched, _ = load(model, style="a.safetensors", strengths=(1.0, 1.1), mode=SQUARED)
    ((strength, patch, *_),) = patched.patches[KEYS[1]]
    up, down = (tensors[f"diffusion_model.{BLOCKS[1]}.lora_{h}.weight"] for h in ("up", "down"))
    zeros = torch.zeros(up.shape[0], down.shape[1])
    made = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], zeros, "w")
    torch.testing.assert_close(made, (1.1 * up) @ (1.1 * down))


def test_nodes_follow_each_other_and_adapters_stand_for_files(load, model):
    from graft.adapters.file import AdapterFile
    from tests.host import tiny

    file = AdapterFile(lora(model.model.diffusion_model, [*BLOCKS, ELSE]), {}, "trained")
    one, _ = load(model, "ignored.safetensors", content_adapter=file)
    two, _ = load(one, strengths=(1.0, 0.3), style_adapter=file)
    three, _ = load(two, strengths=(1.0, 0.2), style_adapter=file)
    assert given(three) == {KEYS[0]: [1.0], KEYS[1]: [0.3, 0.2]}
    both, _ = load(model, strengths=(1.0, 0.5), content_adapter=file, style_adapter=file)
    sampled = tiny.sample(both, "sdxl")
    torch.testing.assert_close(sampled, tiny.sample(three, "sdxl"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sampled, tiny.sample(model, "sdxl"), atol=1e-3)


def test_what_has_no_such_block_is_an_error(load, loras, model):  # noqa: F811
    from graft.nodes.load_b_lora import LoadBLora
    from tests.host import tiny

    root = model.model.diffusion_model
    write(loras, lora(root, [BLOCKS[0], ELSE]), "c.safetensors")
    said = r"'c': There is no layer of output_blocks.1.1 in it, the style .*"
    with pytest.raises(
        ValueError, match=f"{said}1 layers in middle_block.1, 1 layers in output_blocks.0.1"
    ):
        load(model, style="c.safetensors")
    with pytest.raises(ValueError, match="nothing to load: choose a file"):
        load(model)
    with pytest.raises(
        ValueError, match=r"SD3 has no attention in output_blocks.0.1.*connect an SDXL"
    ):
        load(tiny.model("sd3"), "c.safetensors")
    write(loras, lora(root, BLOCKS) | {"x": torch.full((2,), float("nan"))}, "d.safetensors")
    assert "1 of 2 layers" in load(model, "d.safetensors")[1]  # what is not read does not matter
    (loras / "e.safetensors").write_bytes((loras / "d.safetensors").read_bytes()[:-9])
    (loras / "f.safetensors").write_bytes(b"PK\x03\x04" + b"x" * 100)
    (loras / "g.safetensors").write_bytes(b"")
    write(loras, lora(root, BLOCKS), "h.safetensors")
    for name in "efg":
        with pytest.raises(ValueError, match=f"'{name}.safetensors' .*cut off or damaged"):
            load(model, f"{name}.safetensors")
    check = LoadBLora.validate_inputs
    assert check("none", "h.safetensors") is True and check(None, None) is True
    assert "Unknown LoRA file 'no.safetensors'" in check("none", "no.safetensors")


def test_a_changed_file_is_read_anew(loras, model):  # noqa: F811
    from graft.nodes.load_b_lora import LoadBLora

    root = model.model.diffusion_model
    name = write(loras, lora(root, BLOCKS), "a.safetensors")
    before = LoadBLora.fingerprint_inputs("none", name)
    assert LoadBLora.fingerprint_inputs("none", name) == before
    write(loras, lora(root, [*BLOCKS, ELSE]), "a.safetensors")
    assert LoadBLora.fingerprint_inputs("none", name) != before
    assert LoadBLora.fingerprint_inputs("none", "none") == ""
    asked = inspect.signature(LoadBLora.fingerprint_inputs).parameters
    assert set(asked) == set(inspect.signature(LoadBLora.execute).parameters)
