# SPDX-License-Identifier: Apache-2.0
"""Load Adapter with a range and a mask, on graft-mini through the host's sampler."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.host.model.test_limits import close, hooks, lora

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wires(comfy):
    from graft.host.model import mini

    with torch.inference_mode():
        return mini.load_mini()


@pytest.fixture
def load(wires):
    from graft.adapters.file import AdapterFile
    from graft.nodes.load import LoadAdapter

    def call(model, tensors, strength=1.0, **more):
        node = type("LoadAdapter", (LoadAdapter,), {"hidden": SimpleNamespace(unique_id="7")})
        with torch.inference_mode():
            file = AdapterFile(tensors, {}, "it")
            return node.execute(model, "", strength, 1.0, "", adapter=file, **more).args

    return call


def drawn(model, clip, steps=5, prompt="a red circle on a blue background", shape=(2, 4, 8, 8)):
    """Latents of a prompt, by KSampler's own function."""
    import comfy.sample

    with torch.inference_mode():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]
        empty = torch.zeros(shape)
        noise = comfy.sample.prepare_noise(empty, 3)
        return comfy.sample.sample(
            model, noise, steps, 3.0, "euler", "simple", *texts, empty,
            disable_pbar=True, seed=3,
        ).clone()  # fmt: skip


def adapter(model, names=None, size=0.2):
    root = model.model.diffusion_model
    found = [
        name
        for name, module in root.named_modules()
        if hasattr(module, "weight") and module.weight is not None and module.weight.ndim in (2, 4)
        and "_embed" not in name and "label_emb" not in name
    ]  # fmt: skip
    return lora(model, names or found, size=size)


def test_all_of_it_is_merged_or_the_same_by_hooks_and_none_of_it_is_the_base(wires, load):
    model, clip, _ = wires
    tensors = adapter(model)
    plain = drawn(model, clip)
    merged, _, said = load(model, tensors)
    expected = drawn(merged, clip)
    assert said.endswith("Merged: no cost per step")
    assert not torch.allclose(expected, plain, atol=0.05 * float(plain.abs().max()))
    same, _, _ = load(model, tensors, start_percent=0.0, end_percent=1.0, mask=None)
    assert torch.equal(drawn(same, clip), expected) and not same.injections
    count = len(tensors) // 3
    masked, _, said = load(model, tensors, mask=torch.ones(1, 512, 512))
    assert said.endswith(f"Hooked: {count} layers, because of the mask")
    close(drawn(masked, clip), expected)
    ranged, _, said = load(model, tensors, end_percent=0.9, mask=torch.ones(1, 512, 512))
    assert said.endswith(f"Hooked: {count} layers, because of the range and the mask")
    close(drawn(ranged, clip), expected)
    for limits in (
        {"start_percent": 0.41, "end_percent": 0.59},  # five steps, at 0, 1/5, ... 4/5
        {"mask": torch.zeros(1, 512, 512)},
    ):
        none, _, _ = load(model, tensors, **limits)
        assert torch.equal(drawn(none, clip), plain)
    zero, _, _ = load(model, tensors, 0.0, end_percent=0.5)
    assert torch.equal(drawn(zero, clip), plain) and hooks(model) == 0


def test_a_mask_keeps_the_rest_of_the_picture_nearer_to_the_base(wires, load):
    """The other half sees the masked one by attention and convolutions only (measured: 0.37 and 0.12 of the change)."""
    import comfy.utils

    model, clip, _ = wires
    tensors = comfy.utils.load_torch_file(str(ROOT / "assets/loras/dax begun.safetensors"))
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    found = [
        drawn(wire, clip, 8, "a photo of a dax", (8, 4, 16, 16))
        for wire in (model, load(model, tensors)[0], load(model, tensors, mask=mask)[0])
    ]
    changed = [
        (value - found[0]).square().mean((0, 1, 2)).unflatten(0, (2, 8)).mean(1) for value in found
    ]
    left, right = changed[2] / changed[1]
    assert right < 0.2 and left > 2 * right


def test_the_widgets_are_checked_before_a_run(comfy):
    from graft.nodes.load import LoadAdapter

    check = LoadAdapter.validate_inputs
    assert check(None, "", 0.0, 0.5) is True and check(None, "", None, None) is True
    assert "start_percent 0.6 and end_percent 0.4 must be" in check(None, "", 0.6, 0.4)
