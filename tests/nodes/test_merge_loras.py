# SPDX-License-Identifier: Apache-2.0
"""Merge LoRAs: what the merged file does to the weights is what all of them do, whatever they are and come from."""

import dataclasses

import pytest
import torch

from tests.host import tiny
from tests.host.test_networks import merged as weight_of
from tests.host.test_networks import network
from tests.nodes.test_dreambooth import call

pytestmark = pytest.mark.comfy
FEW = "input_blocks.3.1.*.attn1.to_q, output_blocks.1.1.*.ff.net.2, input_blocks.1.0.in_layers.2"


@pytest.fixture(scope="module")
def model(comfy):
    with torch.inference_mode():
        return tiny.model("sdxl")


def adapter(model, name="lora", blocks=FEW, seed=0, **settings):
    """What a training of this network would hand over."""
    from graft.adapters.attach import Attached
    from graft.adapters.file import AdapterFile
    from graft.host.files import stock_form
    from graft.host.model.trainee import trainee

    with trainee(model, precision="fp32") as t:
        attached = Attached(t.diffusion_model, network(name, blocks, **settings), seed, t.device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in attached.parameters().values():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        native = attached.tensors()
        attached.remove()
    said = {"graft.dora_scale": stock_form.BY_BASE} if name == "dora" else {}
    return AdapterFile(stock_form.exported(model, None, native), said, f"{name} {seed}")


def merge(*adapters, **changes):
    from graft.nodes.merge_loras import MergeLoras

    wires = {f"adapter_{n}": one for n, one in enumerate(adapters, 1)}
    return call(MergeLoras, wires, **changes).result


def change(model, file, layer):
    """What the host's own loader makes of a weight, less the weight."""
    from graft.host.files import result

    patched, _ = result.apply(model, file.tensors)
    return weight_of(patched, layer) - weight_of(model, layer)


def keys(file):
    marks = (".alpha", ".diff_b")
    return {key.partition(".lora_")[0] for key in file.tensors if not key.endswith(marks)}


def test_two_loras_are_what_both_do_one_after_the_other(model):
    from graft.host.files import result

    one, two = adapter(model, rank=4), adapter(model, seed=1, rank=3)
    merged, lora, report = merge(one, two, weight_1=0.7, weight_2=-0.5, name="both")
    assert keys(merged) == keys(one) and merged.name == "both"
    assert set(lora) == set(merged.tensors)
    for layer in sorted(keys(merged)):
        key = f"{layer}.weight"
        expected = 0.7 * change(model, one, key) - 0.5 * change(model, two, key)
        got = change(model, merged, key)
        assert float((got - expected).norm()) < 1e-5 * float(expected.norm())
        assert len(merged.tensors[f"{layer}.lora_down.weight"]) == 7
    shapes = {k: t.shape for k, t in one.tensors.items() if k.endswith("up.weight")}
    assert all(merged.tensors[k].shape[2:] == shape[2:] for k, shape in shapes.items())
    assert "'lora 0' x 0.7 and 'lora 1' x -0.5, merged by sum" in report
    assert f"{len(keys(one))} layers, {len(keys(one))} of them in all" in report
    assert result.apply(model, merged.tensors)[1].complete


@pytest.mark.parametrize("kind", ("loha", "lokr", "oft", "boft", "dora", "ia3", "full"))
def test_any_kinds_are_summed_as_they_change_the_weights(model, kind):
    settings = {"norms": True, "biases": True} if kind == "full" else {}
    one, two = adapter(model, rank=2), adapter(model, kind, seed=1, **settings)
    merged, _, report = merge(one, two, weight_2=0.5, model=model)
    for layer in sorted(keys(one)):
        key = f"{layer}.weight"
        expected = change(model, one, key) + 0.5 * change(model, two, key)
        got = change(model, merged, key)
        assert float((got - expected).norm()) < 1e-4 * float(expected.norm()), key
    if kind in ("full", "ia3"):
        biases = [k for k in two.tensors if k.endswith(".diff_b")]
        assert biases
        for key in biases:
            torch.testing.assert_close(merged.tensors[key], 0.5 * two.tensors[key])
    assert "energy kept: 100.00%" in report
    total = len(merged.tensors)
    assert f"{total} of {total} tensors applied" in report


def test_a_dora_of_another_program_is_summed_as_it_is_loaded(model):
    """Without our note its magnitudes are what |V| becomes, under PEFT's names as under ComfyUI's."""
    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import WHOLE

    ends = {"up": "lora_B", "down": "lora_A"}
    one, own = adapter(model, rank=2), adapter(model, "dora", seed=1)
    layers = {key.partition(".lora_")[0] for key in own.tensors if ".lora_down" in key}
    theirs = {}
    for key, tensor in own.tensors.items():
        layer, _, end = key.removeprefix("diffusion_model.").rpartition(".lora_")
        if layer:
            theirs[f"base_model.model.{layer}.{ends[end.partition('.')[0]]}.weight"] = tensor
    for layer in layers:
        magnitude = own.tensors[f"{layer}.dora_scale"]
        down = own.tensors[f"{layer}.lora_down.weight"]
        shaped = magnitude.reshape(1, -1, 1, 1) if down.ndim == 4 else magnitude.reshape(-1)
        name = layer.removeprefix("diffusion_model.")
        theirs[f"base_model.model.{name}.lora_magnitude_vector"] = shaped
    dora = AdapterFile(theirs, {}, "theirs")
    merged, _, report = merge(one, dora, model=model)
    assert "left out" not in report
    loaded = loading.load(model, None, dora, WHOLE)[0]
    for layer in sorted(layers):
        key = f"{layer}.weight"
        wanted = weight_of(loaded, key) - weight_of(model, key) + change(model, one, key)
        assert float((change(model, merged, key) - wanted).norm()) < 1e-4 * float(wanted.norm())


def test_a_file_of_another_dialect_meets_the_same_layers(model):
    one = adapter(model, rank=2, blocks="attention")
    renamed = {
        "lora_unet_"
        + k.removeprefix("diffusion_model.")
        .replace(".", "_")
        .replace(f"_{end.replace('.', '_')}", f".{end}"): tensor
        for k, tensor in one.tensors.items()
        for end in ("lora_up.weight", "lora_down.weight", "alpha")
        if k.endswith(f".{end}")
    }
    two = dataclasses.replace(one, tensors=renamed, name="kohya")
    with pytest.raises(ValueError, match="in different ways .*connect the MODEL"):
        merge(one, two)
    merged, _, _ = merge(one, two, weight_1=1.0, weight_2=1.0, model=model)
    assert keys(merged) == keys(one)
    layer = sorted(keys(one))[0]
    torch.testing.assert_close(
        change(model, merged, f"{layer}.weight"), 2 * change(model, one, f"{layer}.weight")
    )


def test_weights_by_block_and_layers_that_one_lacks(model):
    one = adapter(model, rank=2)
    two = adapter(model, seed=1, rank=2, blocks=f"{FEW}, middle_block.1.*.attn2.to_k")
    merged, _, report = merge(one, two, weights_1="input_blocks=0.25; in_layers=0", weight_2=2.0)
    assert keys(merged) == keys(two)
    for layer, first in (
        ("input_blocks.3.1.transformer_blocks.0.attn1.to_q", 0.25),
        ("input_blocks.1.0.in_layers.2", 0.0),
        ("output_blocks.1.1.transformer_blocks.0.ff.net.2", 1.0),
    ):
        key = f"diffusion_model.{layer}.weight"
        expected = first * change(model, one, key) + 2 * change(model, two, key)
        torch.testing.assert_close(change(model, merged, key), expected, rtol=1e-4, atol=1e-6)
    missing = len(keys(two) - keys(one))
    assert missing and f"not in 'lora 0': {missing} layers" in report
    with pytest.raises(ValueError, match="'lora 0': .*Did you mean"):
        merge(one, two, weights_1="inptu_blocks=0.5")


def test_a_rank_keeps_what_it_can_and_says_how_much(model):
    one, two = (adapter(model, seed=seed, rank=4) for seed in (0, 1))
    merged, _, report = merge(one, two, rank=2)
    energy = whole = 0.0
    for layer in keys(merged):
        assert len(merged.tensors[f"{layer}.lora_down.weight"]) == 2
        both = change(model, one, f"{layer}.weight") + change(model, two, f"{layer}.weight")
        s = torch.linalg.svdvals(both.flatten(1).double())
        energy, whole = energy + float(s[:2].norm() ** 2), whole + float(s.norm() ** 2)
    assert f"energy kept: {energy / whole:.2%}, least in " in report
    assert "rank 8 would keep all" in report


@pytest.mark.parametrize("mode", ("dare-ties", "dare-linear-svd"))
def test_what_is_drawn_comes_from_the_seed_and_the_layer(model, mode):
    one, two = (adapter(model, seed=seed, rank=4) for seed in (0, 1))
    first, again, other = (merge(one, two, mode=mode, seed=s)[0].tensors for s in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    part = dataclasses.replace(
        one, tensors={k: t for k, t in one.tensors.items() if "in_layers" in k}
    )
    less = merge(part, two, mode=mode, seed=3)[0].tensors
    key = next(k for k in less if "in_layers" in k and k.endswith("down.weight"))
    assert torch.equal(less[key], first[key])


def test_words_are_carried_and_must_differ(model):
    one, two = (adapter(model, seed=seed, rank=2) for seed in (0, 1))
    word = {
        "bundle_emb.dax.clip_l": torch.randn(2, 32),
        "bundle_emb.dax.clip_g": torch.randn(2, 64),
    }
    one = dataclasses.replace(one, tensors={**one.tensors, **word})
    merged, lora, report = merge(one, two)
    assert torch.equal(merged.tensors["bundle_emb.dax.clip_l"], word["bundle_emb.dax.clip_l"])
    assert "new words: dax" in report and not any("bundle_emb" in key for key in lora)
    with pytest.raises(ValueError, match="'lora 1' and another adapter both have the new word dax"):
        merge(one, dataclasses.replace(two, tensors={**two.tensors, **word}))


def test_text_encoders_are_merged_under_one_name(model, comfy):
    clip = tiny.clip("sdxl")
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator)
    name = "encoder.layers.1.self_attn.q_proj"
    pair = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
    one, two = (adapter(model, seed=seed, rank=2) for seed in (0, 1))
    generic = f"text_encoders.clip_l.transformer.text_model.{name}"
    kohya = f"lora_te1_text_model_{name.replace('.', '_')}"
    one, two = (
        dataclasses.replace(a, tensors={**a.tensors, **{f"{n}.{k}": t for k, t in pair.items()}})
        for a, n in ((one, generic), (two, kohya))
    )
    with pytest.raises(ValueError, match="connect the CLIP"):
        merge(one, two)
    merged, _, report = merge(one, two, weight_2=3.0, model=model, clip=clip)
    made = (
        merged.tensors[f"{generic}.lora_up.weight"] @ merged.tensors[f"{generic}.lora_down.weight"]
    )
    torch.testing.assert_close(made, 4 * up @ down)
    assert not any(key.startswith("lora_te1") for key in merged.tensors)
    total = len(merged.tensors)
    assert f"{total} of {total} tensors applied" in report


def test_what_cannot_be_merged_is_refused_by_name(model):
    one, dora = adapter(model, rank=2), adapter(model, "dora", seed=1)
    for mode in ("ties", "svd"):
        with pytest.raises(ValueError, match="'dora 1' is a DoRA.*choose 'sum', and connect"):
            merge(one, dora, mode=mode, model=model)
    with pytest.raises(ValueError, match="'dora 1' is a DoRA.*connect the MODEL"):
        merge(one, dora)
    with pytest.raises(ValueError, match="There is 1 adapter to merge"):
        merge(one)
    with pytest.raises(ValueError, match="The ranks are 2, 3"):
        merge(one, adapter(model, rank=3), mode="ties")
    with pytest.raises(ValueError, match="Every weight is 0"):
        merge(one, one, weight_1=0.0, weight_2=0.0)
    with pytest.raises(ValueError, match="bottleneck adapters"):
        merge(one, adapter(model, "bottleneck", blocks="all"))
    other = tiny.model("sd15")
    with pytest.raises(ValueError, match="has nothing to merge into SDXL|layers have"):
        merge(one, adapter(other, rank=2, blocks="cross-attention kv"), model=model)


def test_a_file_is_read_where_nothing_is_connected(model):
    from graft.host.files import lora_files
    from graft.nodes.merge_loras import MergeLoras

    name = "graft-examples/dax begun.safetensors"
    file = lora_files.load_any(name)
    merged, _, report = merge(file_1=name, file_2=name, weight_2=0.5, mode="linear")
    assert keys(merged) == keys(file) and "'dax begun' x 1 and 'dax begun' x 0.5" in report
    # PEFT's linear of a change with itself: (1 + sqrt 0.5)^2 dW, not 1.5 dW
    layer = sorted(keys(file))[0]
    up, down = (f"{layer}.lora_{part}.weight" for part in ("up", "down"))
    scale = float(file.tensors[f"{layer}.alpha"]) / len(file.tensors[down])
    own = scale * file.tensors[up].flatten(1).float() @ file.tensors[down].flatten(1).float()
    got = merged.tensors[up].flatten(1) @ merged.tensors[down].flatten(1)
    torch.testing.assert_close(got, (1 + 0.5**0.5) ** 2 * own, rtol=1e-4, atol=1e-6)
    assert MergeLoras.validate_inputs(file_1="no such") is not True
    assert MergeLoras.validate_inputs(weights_1="attn") is not True
    assert MergeLoras.fingerprint_inputs(file_1=name) != MergeLoras.fingerprint_inputs()
