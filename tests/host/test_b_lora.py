# SPDX-License-Identifier: Apache-2.0
"""B-LoRA's mechanism: each file is one block, changes nothing else, and can be exchanged by itself."""

import pytest
import torch

from tests.host.test_engine import dataset, request

pytestmark = pytest.mark.comfy

CONTENT, STYLE = "output_blocks.0.1.", "output_blocks.1.1."


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        found = {"sdxl": tiny.model("sdxl"), "clip_sdxl": tiny.clip("sdxl")}
        return found | {"vae_sdxl": tiny.vae("sdxl")}


@pytest.fixture(scope="module", autouse=True)
def output(comfy, tmp_path_factory):
    import folder_paths

    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("output"))
    yield
    folder_paths.output_directory = before


@pytest.fixture(scope="module")
def trained(wires, output):
    """B-LoRAs of two pictures: all that the training nodes hand over, by the picture's name."""
    from graft.host import engine

    made = {}
    for seed, name in enumerate("AB"):
        plan = {"batch_size": 1, "seed": seed}
        with torch.inference_mode():
            asked = request(
                wires, blocks="b-lora", dataset=dataset(1, f"a {name}"), plan=plan, name=name
            )
            made[name] = engine.train(asked)
    return made


@pytest.fixture(scope="module")
def files(trained, output):
    """Content and style of both as files, written as Save LoRA does: names that Load LoRA lists."""
    from graft.host.files import paths, result
    from graft.loaders.selection import select

    made = {}
    for name, outcome in trained.items():
        for part in ("", " content", " style"):
            kept = select(outcome.adapter, f"b-lora{part}")
            path = paths.loras_folder() / f"{name}{part}.safetensors"
            made[f"{name}{part}"] = result.save_lora(path, kept)
    return made


def loaded(model, *given):
    """The MODEL with files on it by the host's own Load LoRA node, each with its strength."""
    from graft.host.files import paths
    from nodes import LoraLoader

    for path, strength in given:
        name = str(path.relative_to(paths.loras_folder()))
        with torch.inference_mode():
            model, _ = LoraLoader().load_lora(model, None, name, strength, 0.0)
    return model


def weights(model):
    """Every weight of the network with its patches, in fp32, without loading the model."""
    import comfy.lora

    found = {}
    with torch.inference_mode():
        for key, parts in model.get_key_patches("diffusion_model.").items():
            (base, convert), *patches = parts
            plain = convert(base.detach().float().clone(), inplace=True)
            found[key.removeprefix("diffusion_model.")] = comfy.lora.calculate_weight(
                patches, plain, key
            )
    return found


def changed(one, other):
    return {key for key in one if not torch.equal(one[key], other[key])}


def in_block(keys, block):
    return {key for key in keys if key.startswith(block)}


def test_training_changes_the_two_blocks_and_nothing_else(wires, trained):
    before = weights(wires["sdxl"])
    moved = changed(before, weights(trained["A"].model))
    assert moved == {k for k in before if ".attn" in k and k.startswith((CONTENT, STYLE))} - {
        k for k in before if k.endswith(".bias")
    }
    assert len(moved) == 32, "q, k, v and out of two attentions in two transformers, twice"


def test_each_file_is_one_block_and_together_they_are_the_whole(files):
    from safetensors.torch import load_file

    for name in "AB":
        whole, *parts = (load_file(files[f"{name}{part}"]) for part in ("", " content", " style"))
        assert {key.split(".")[2] for key in parts[0]} == {"0"}
        assert {key.split(".")[2] for key in parts[1]} == {"1"}
        assert not set(parts[0]) & set(parts[1])
        union = parts[0] | parts[1]
        assert union.keys() == whole.keys()
        assert all(torch.equal(union[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["A", "A content", "A style"])
def test_the_stock_loader_takes_all_of_every_file(wires, files, name):
    from graft.host.files import result

    report = result.self_check(files[name], wires["sdxl"])
    layers = 32 if name == "A" else 16
    assert report.complete and report.total == 3 * layers and report.relative_change > 0
    assert len(loaded(wires["sdxl"], (files[name], 1.0)).patches) == layers


def test_content_of_one_and_style_of_the_other_are_each_bit_for_bit(wires, files):
    model = wires["sdxl"]
    base = weights(model)
    a, b = (weights(loaded(model, (files[name], 1.0))) for name in "AB")
    mixed = weights(loaded(model, (files["A content"], 1.0), (files["B style"], 1.0)))
    for key, value in mixed.items():
        of = a if key.startswith(CONTENT) else b if key.startswith(STYLE) else base
        assert torch.equal(value, of[key]), key
    assert in_block(changed(a, b), CONTENT) and in_block(changed(a, b), STYLE)


def test_exchanging_a_file_changes_its_block_alone(wires, files):
    model = wires["sdxl"]

    def mixed(content, style):
        given = ((files[f"{content} content"], 1.0), (files[f"{style} style"], 1.0))
        return weights(loaded(model, *given))

    start = mixed("A", "B")
    by_content, by_style = changed(start, mixed("B", "B")), changed(start, mixed("A", "A"))
    assert len(by_content) == len(in_block(by_content, CONTENT)) == 16
    assert len(by_style) == len(in_block(by_style, STYLE)) == 16


def test_each_strength_acts_on_its_block_alone(wires, files):
    """dW is linear in the strength, and no block knows of the other's."""
    model = wires["sdxl"]
    base = weights(model)

    def mixed(*strengths):
        given = zip((files["A content"], files["A style"]), strengths, strict=True)
        return weights(loaded(model, *given))

    full, half = mixed(1.0, 1.0), mixed(0.5, 1.0)
    assert changed(full, half) == in_block(changed(full, base), CONTENT)
    for key in changed(full, half):
        wanted = 0.5 * (full[key] - base[key])
        assert torch.allclose(half[key] - base[key], wanted, atol=1e-6)
    assert changed(mixed(1.0, 0.0), base) == in_block(changed(full, base), CONTENT)
    assert changed(mixed(0.0, 1.0), base) == in_block(changed(full, base), STYLE)


def test_two_files_are_one(wires, files):
    """In the order of either, they sample what the whole file does."""
    model = wires["sdxl"]
    whole = weights(loaded(model, (files["A"], 1.0)))
    for order in ((" content", " style"), (" style", " content")):
        both = weights(loaded(model, *((files[f"A{part}"], 1.0) for part in order)))
        assert not changed(whole, both)
