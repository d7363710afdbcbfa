# SPDX-License-Identifier: Apache-2.0
"""Inspect LoRA and Compare LoRAs through their nodes."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy
HELD = SimpleNamespace(unique_id="7")
LAYER = "diffusion_model.input_blocks.0.0"


@pytest.fixture
def model(comfy):
    from tests.host import tiny

    return tiny.model("sdxl")


@pytest.fixture
def look(comfy):
    from graft.nodes.inspect import InspectLora

    def call(adapter=None, file="", model=None):
        node = type("InspectLora", (InspectLora,), {"hidden": HELD})
        with torch.inference_mode():
            image, text = node.execute(file, adapter, model).args
        assert (
            image.ndim == 4
            and image.shape[-1] == 3
            and 0 <= float(image.min()) < float(image.max()) <= 1
        )
        return text

    return call


@pytest.fixture
def compare(comfy):
    from graft.nodes.inspect import CompareLoras

    def call(one, other, model=None):
        node = type("CompareLoras", (CompareLoras,), {"hidden": HELD})
        with torch.inference_mode():
            return node.execute("", "", one, other, model).args

    return call


def adapter(tensors, metadata=None, name="one"):
    from graft.adapters.file import AdapterFile

    return AdapterFile(tensors, metadata or {}, name)


def pair(name, up, down, alpha=None):
    made = {
        f"{name}.lora_up.weight": torch.tensor(up),
        f"{name}.lora_down.weight": torch.tensor(down),
    }
    return made | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


def test_the_packs_example_is_described(look):
    from graft.host.files import lora_files

    known = [name for name in lora_files.names() if name.startswith(lora_files.EXAMPLES)]
    (name,) = [name for name in known if "begun" in name]
    text = look(file=name)
    assert "360 tensors, 120 layers" in text and "Dialect: kohya (diffusers names)" in text
    assert "Kinds: 120 x LoRA" in text and "Trigger: dax" in text
    assert "rank 4, alpha 2" in text and "ss_network_dim: 4" in text
    assert "the file says GraftMini" in text
    (name,) = set(known) - {name}
    assert "New words: TOK (clip_g [2, " in look(file=name)


def test_sizes_by_hand_without_a_model_and_shares_with_it(look, model):
    """[[6, 0], [8, 0]] has |dW| = 10, and of the model's layer, twice its weight is 200 %."""
    q = "diffusion_model.output_blocks.0.1.transformer_blocks.0.attn2.to_k"
    text = look(adapter(pair(q, [[3.0], [4.0]], [[2.0, 0.0]])))
    assert "output_blocks.0: 1, rank 1, alpha none, 10" in text and "texts are 2 wide" in text
    weight = model.model.state_dict()[f"{LAYER}.weight"]
    text = look(adapter({f"{LAYER}.diff": 2 * weight.clone()}), model=model)
    assert ", 200.00%" in text and "On the model: 1 of 1 tensors applied" in text
    assert "Kinds: 1 x full" in text


def test_what_is_wrong_is_shown_and_not_refused(look, model):
    from graft.adapters.tokens import BUNDLE

    name = "diffusion_model.middle_block.1.proj_in"
    good = "diffusion_model.middle_block.1.proj_out"
    flat = "lora_unet_middle_block_1_proj_out"
    tensors = {
        **pair(name, [[1.0]], [[1.0], [2.0]]),
        **pair(f"{LAYER}", [[math.nan]], [[1.0]]),
        **pair(good, [[0.0]], [[1.0]]),
        **pair(flat, [[0.0]], [[1.0]]),
        "someone.else": torch.ones(1),
        f"{BUNDLE}zork.clip_l": torch.ones(2, 4),
    }
    text = look(adapter(tensors), model=model)
    assert "1 tensors have values that are no finite numbers" in text
    assert (
        "1 layers do not go together: " + name in text and "rank 1 and down [2, 1] rank 2" in text
    )
    assert f"2 tensors are of layers that are there before, under other names: {flat}" in text
    assert "1 tensors are no adapter's, and are passed over: someone.else" in text
    assert "1 layers change nothing: " + good in text
    assert "New words: zork (clip_l [2, 4])" in text


def test_kinds_dialects_and_settings(look):
    tensors = {f"lora_unet_mid_block_attentions_0_proj_in.{k}": torch.ones(2, 2) for k in
               ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}  # fmt: skip
    tensors |= {"lora_te_text_model_encoder_layers_3_mlp_fc1.oft_blocks": torch.ones(1, 2, 2)}
    metadata = {"ss_learning_rate": "0.0001", "modelspec.architecture": "stable-diffusion-v1/lora"}
    text = look(adapter(tensors, metadata | {"ss_tag_frequency": json.dumps({"a": {"dog": 3}})}))
    assert "1 x LoHa" in text and "1 x OFT" in text and "clip_l.3: 1, rank none" in text
    assert "needs the model" in text and "ss_learning_rate: 0.0001" in text
    assert "Tags of the data" in text and "the file says stable-diffusion-v1/lora" in text


def test_a_lora_of_another_family_is_named_with_shapes(look, model):
    text = look(adapter(pair(f"{LAYER}", [[1.0]], [[1.0]])), model=model)
    assert "On the model: None of the 2 tensors of the LoRA fits SDXL" in text
    assert "Made for: a UNet" in text


def test_comparing_by_hand(compare):
    """dW1 = [3, 4], dW2 = [4, 3]: cosine 24 / 25, distance sqrt(2) / 5; under the names of two dialects."""
    key = "diffusion_model.middle_block.1.proj_in"
    one = adapter(pair(key, [[1.0]], [[3.0, 4.0]]) | pair(LAYER, [[1.0]], [[1.0]]))
    other = adapter(
        pair("lora_unet_mid_block_attentions_0_proj_in", [[2.0]], [[2.0, 1.5]]), name="other"
    )
    image, text = compare(one, other)
    assert "1 layers in both" in text and f"1 in 'one' only: {LAYER}" in text
    assert f"middle_block: 0.960, {math.sqrt(2) / 5:.3g}, 5, 5" in text
    assert image.shape[-1] == 3
    _, text = compare(one, one)
    assert "all: 1.000, 0, " in text


def test_what_cannot_be_compared_is_named(compare):
    one = adapter(pair(LAYER, [[1.0]], [[1.0]]))
    with pytest.raises(ValueError, match="no layer in common"):
        compare(one, adapter(pair("diffusion_model.out.2", [[1.0]], [[1.0]]), name="other"))
    with pytest.raises(ValueError, match=r"is \(1, 1\) in one and \(1, 2\) in the other"):
        compare(one, adapter(pair(LAYER, [[1.0]], [[1.0, 2.0]]), name="other"))
    _, text = compare(one, adapter({f"{LAYER}.oft_blocks": torch.ones(1, 1, 1)}, name="other"))
    assert "1 cannot be compared without the weight" in text


def test_broken_files_are_named(look, comfy):
    from graft.host.files import paths

    folder = comfy / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, data in (
            ("empty", b""),
            ("short", b"\x40" + bytes(7) + b"{}"),
            ("pickle", b"PK\x03\x04" * 30),
        ):
            (folder / f"{name}.safetensors").write_bytes(data)
            paths.refresh_loras()
            with pytest.raises(ValueError, match=name):
                look(file=f"{name}.safetensors")
    finally:
        for file in folder.glob("*.safetensors"):
            file.unlink()
        paths.refresh_loras()
