# SPDX-License-Identifier: Apache-2.0
"""How alike blocks are: 1 for a model and itself, less from the changed block on, the same for patched and plain."""

import math

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy


def lora(model, name, size):
    module = model.model.diffusion_model.get_submodule(name)
    generator = torch.Generator().manual_seed(1)
    return {
        f"diffusion_model.{name}.lora_up.weight": size
        * torch.randn(module.weight.shape[0], 4, generator=generator),
        f"diffusion_model.{name}.lora_down.weight": torch.randn(
            4, module.weight.shape[1], generator=generator
        ),
    }


def test_a_model_is_like_itself_and_a_patched_one_differs_from_the_changed_block_on(comfy):
    from graft.host.files import result
    from graft.host.model.block_outputs import alike

    model = tiny.model("sdxl")
    target = next(
        name
        for name, module in model.model.diffusion_model.named_modules()
        if name.startswith("output_blocks.1.") and name.endswith("attn1.to_v")
    )
    patched = result.apply(model, lora(model, target, 0.5))[0]
    positive, latent = tiny.conditioning("sdxl"), tiny.latent("sdxl", batch=2)
    with torch.inference_mode():
        same = alike(model, model.clone(), positive, latent, 2, 0)
        changed = alike(model, patched, positive, latent, 2, 0)
        back = alike(patched, model, positive, latent, 2, 0)
    finite = [value for row in same.values for value in row if math.isfinite(value)]
    assert finite and all(value == pytest.approx(1.0, abs=1e-9) for value in finite)
    before = [i for i, name in enumerate(changed.blocks) if name < "output_blocks.1"]
    at = changed.blocks.index("output_blocks.1")
    assert all(value == pytest.approx(1.0, abs=1e-9) for i in before for value in changed.values[i])
    assert all(value < 1 - 1e-6 for value in changed.values[at])
    for one, other in zip(changed.values, back.values, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    assert changed.levels[0] > changed.levels[1]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
def test_every_family_has_blocks_with_names(family, comfy):
    from graft.host.model.block_outputs import named_blocks

    network = tiny.model(family).model.diffusion_model
    found = named_blocks(network)
    assert len(found) >= 2 and all("." in name or name == "middle_block" for name in found)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_transformers_without_a_unet_are_compared_too(family, comfy):
    from graft.host.model.block_outputs import alike

    model = tiny.model(family)
    with torch.inference_mode():
        found = alike(model, model, tiny.conditioning(family), tiny.latent(family, batch=3), 1, 0)
    assert len(found.blocks) >= 2
    assert all(row[0] == pytest.approx(1.0, abs=1e-9) for row in found.values)


def test_models_with_different_blocks_are_refused_by_name(comfy, monkeypatch):
    from graft.host.model import block_outputs

    model = tiny.model("sdxl")
    real, seen = block_outputs.named_blocks, []

    def fewer(network):
        seen.append(network)
        found = real(network)
        return found if len(seen) == 1 else {n: b for n, b in found.items() if n != "middle_block"}

    monkeypatch.setattr(block_outputs, "named_blocks", fewer)
    with torch.inference_mode(), pytest.raises(ValueError, match="middle_block.*same model"):
        block_outputs.alike(model, model, tiny.conditioning(), tiny.latent(), 1, 0)
