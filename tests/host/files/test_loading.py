# SPDX-License-Identifier: Apache-2.0
"""One reader for every dialect, lazily: counts on the real layouts, and the same change as ComfyUI's own loader."""

import time

import pytest
import torch

from tests.host import dialects as written
from tests.host import tiny
from tests.host.files.test_keys import build

pytestmark = pytest.mark.comfy

B_LORA = {
    "diffusers": "unet.{}",
    "doubled": "unet.unet.{}",
    "kohya": "lora_unet_{}",
    "kohya ldm": "lora_unet_{}",
    "generic": "diffusion_model.{}",
    "peft": "base_model.model.{}",
}
ENDS = {
    "diffusers": (".lora.up.weight", ".lora.down.weight"),
    "doubled": (".lora.up.weight", ".lora.down.weight"),
    "peft": (".lora_B.weight", ".lora_A.weight"),
}


def full_names(model, dialect):
    """The file's name and the weight of every layer; all of its tensors have the host's shapes."""
    for shown, at, _ in written.layers(model, dialect):
        yield shown, at if isinstance(at, str) else at[0]


def full_file(model, dialect, rank=4):
    """A LoRA of every layer, on the meta device but for alphas, which programs that write them have."""
    up_end, down_end = written.ENDS.get(dialect, written.KOHYA)
    made = {}
    for shown, key in full_names(model, dialect):
        weight = model.model.diffusion_model.get_parameter(key)
        ones = (1,) * (weight.ndim - 2)
        made[f"{shown}{up_end}"] = torch.empty(weight.shape[0], rank, *ones, device="meta")
        made[f"{shown}{down_end}"] = torch.empty(rank, *weight.shape[1:], device="meta")
        if up_end == written.KOHYA[0]:
            made[f"{shown}.alpha"] = torch.tensor(2.0)
        bias = getattr(
            model.model.diffusion_model.get_submodule(key[: -len(".weight")]), "bias", None
        )
        if dialect == "core" and bias is not None:
            made[f"{shown}.diff_b"] = torch.empty(len(bias), device="meta")
    return made


def b_lora(model, dialect, rank=2):
    """160 layers as the authors' training and its conversions name them: random tensors, and their modules."""
    from graft.adapters import spellings
    from graft.adapters.targets import targets

    generator = torch.Generator().manual_seed(1)
    root = model.model.diffusion_model
    made, modules = {}, {}
    for module in targets(root, "b-lora"):
        other = module if dialect in ("kohya ldm", "generic") else spellings.diffusers(module)
        name = B_LORA[dialect].format(other.replace(".", "_") if "kohya" in dialect else other)
        layer = root.get_submodule(module)
        up, down = ENDS.get(dialect, written.KOHYA)
        made[f"{name}{up}"] = torch.randn(layer.out_features, rank, generator=generator)
        made[f"{name}{down}"] = torch.randn(rank, layer.in_features, generator=generator)
        modules[module] = name
    return made, modules


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
@pytest.mark.parametrize("dialect", written.UNET)
def test_every_key_of_a_full_layout_is_read_in_every_dialect(family, dialect):
    """Layers, alphas, core's biases and a bundled word: all are taken, and each by its layer."""
    from graft.adapters.file import AdapterFile
    from graft.adapters.tokens import BUNDLE
    from graft.host.files import homes, loading
    from graft.host.files.strengths import WHOLE
    from graft.loaders import renaming
    from graft.loaders.roles import DOWN, UP, split

    model = build(family)
    file = full_file(model, dialect)
    known = homes.key_map(model)
    found = renaming.find(file, homes.preferred(known))
    halves = sum(split(name)[1] in (UP, DOWN) for name in file)
    assert halves == 2 * len({name.layer for name in found.values()})
    for shown, key in full_names(model, dialect):
        up = f"{shown}{written.ENDS.get(dialect, written.KOHYA)[0]}"
        assert found[up].key == f"diffusion_model.{key.removesuffix('.weight')}.lora_up.weight"
    words = {f"{BUNDLE}zork.clip_l": torch.ones(1, 768)}
    _, _, report = loading.load(model, None, AdapterFile(file | words, {}, "it"), WHOLE)
    assert f"'it': {len(file)} of {len(file)} tensors applied. Merged" in report
    assert "The new words zork need" in report


@pytest.mark.parametrize("dialect", written.UNET)
def test_the_change_is_that_of_the_stock_loader(dialect):
    """The oracle is ComfyUI's own loader on the same numbers under names that it knows."""
    import comfy.lora

    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import WHOLE

    model = tiny.model("sdxl")
    file, oracle = written.written(model, dialect)
    wanted = written.patched(model, oracle)
    patched, _, report = loading.load(model, None, AdapterFile(file, {}, "it"), WHOLE)
    assert f"{len(file)} of {len(file)} tensors applied" in report
    weights = model.model.state_dict()
    assert {
        k.removeprefix("diffusion_model.").removesuffix(".weight")
        for k in patched.patches
        if k.endswith(".weight")
    } == set(wanted)
    for key, patches in patched.patches.items():
        if key.endswith(".weight"):
            made = comfy.lora.calculate_weight(patches, weights[key].detach().float().clone(), key)
            module = key.removeprefix("diffusion_model.").removesuffix(".weight")
            assert torch.equal(made, wanted[module])


@pytest.mark.parametrize("dialect", B_LORA)
def test_the_two_halves_of_a_b_lora_are_disjoint_and_the_whole(dialect):
    """80 layers a block: q, k, v and out of two attentions in ten transformer blocks."""
    from graft.adapters.file import AdapterFile
    from graft.host.files import parts
    from graft.loaders.source import in_memory

    model = build("SDXL")
    tensors, modules = b_lora(model, dialect)
    source = in_memory(AdapterFile(tensors, {}, "it"))
    content = parts.b_lora(source, model, parts.CONTENT, "content")
    style = parts.b_lora(source, model, parts.STYLE, "style")
    assert (content.layers, content.of, style.layers, style.of) == (80, 160, 80, 160)
    assert len(content.file.tensors) == len(style.file.tensors) == 160
    assert not set(content.file.tensors) & set(style.file.tensors)
    up, down = ENDS.get(dialect, written.KOHYA)
    both = {**content.file.tensors, **style.file.tensors}
    assert set(both) == {
        f"diffusion_model.{m}.lora_{h}.weight" for m in modules for h in ("up", "down")
    }
    for module, name in modules.items():
        assert both[f"diffusion_model.{module}.lora_up.weight"] is tensors[f"{name}{up}"]
        assert both[f"diffusion_model.{module}.lora_down.weight"] is tensors[f"{name}{down}"]
    assert "80 of 160 layers" == content.text


def test_a_filtered_load_of_real_size_reads_half_and_is_faster(tmp_path, monkeypatch):
    """SDXL's real shapes: at most 60 % of the bytes, and less time than the stock loader takes for the whole."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    from graft.host.files import loading
    from graft.loaders import lora_file
    from graft.loaders.source import on_disk
    from graft.safetensors_header import read_header

    model = build("SDXL")
    tensors, _ = b_lora(model, "diffusers", rank=16)
    kohya, _ = b_lora(model, "kohya", rank=16)
    path, stock = tmp_path / "b.safetensors", tmp_path / "stock.safetensors"
    lora_file.write(path, tensors)
    lora_file.write(stock, kohya)
    header = read_header(path)
    size, seen = path.stat().st_size, []
    original = lora_file.read_some

    def counted(file, names):
        names = list(names)
        seen.extend(header.tensors[name].end - header.tensors[name].start for name in names)
        return original(file, names)

    monkeypatch.setattr(lora_file, "read_some", counted)

    def ours():
        wanted = {"content": (on_disk(path), 1.0), "style": (None, 1.0)}
        return loading.b_loras(model, wanted, False)

    def theirs():
        mapped = comfy.utils.load_torch_file(str(stock), safe_load=True)
        whole = {key: tensor.clone() for key, tensor in mapped.items()}  # read, as ours are
        return comfy.sd.load_lora_for_models(model, None, whole, 1.0, 0.0)

    patched, report = ours()
    read = sum(seen) + size - max(place.end for place in header.tensors.values())
    assert len(patched.patches) == 80 and "160 of 160 tensors applied" in report
    assert read <= 0.6 * size

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    # In turn, so that what else the machine does meets both.
    times = [(seconds(ours), seconds(theirs)) for _ in range(7)]
    assert min(own for own, _ in times) < min(stock for _, stock in times), times


@pytest.mark.parametrize("dialect", ["diffusers peft", "kohya diffusers"])
def test_a_file_for_another_stable_diffusion_is_named(dialect):
    """SD 1's cross-attentions read 768 numbers a token, SDXL's 2048; a third of the layers would fit."""
    from graft.adapters.file import AdapterFile
    from graft.host.files import loading, parts
    from graft.host.files.strengths import WHOLE
    from graft.loaders.source import in_memory

    file = AdapterFile(full_file(build("SD15"), dialect), {}, "cat")
    model = build("SDXL")
    said = (
        r"'cat': It was made for Stable Diffusion 1: .* width 768, .*SDXL, read 2048 \(\w+_blocks"
    )
    with pytest.raises(ValueError, match=said):
        loading.load(model, None, file, WHOLE)
    with pytest.raises(ValueError, match=said):
        parts.take(in_memory(file), model, lambda names: names)


def test_what_has_no_place_is_not_read(tmp_path, monkeypatch):
    """Without a CLIP not one byte of the text encoders' tensors, and the report is that of the whole file."""
    from graft.host.files import loading, parts
    from graft.host.files.strengths import WHOLE
    from graft.loaders import lora_file
    from graft.loaders.source import on_disk
    from tests.nodes.test_load import everything

    model, clip = tiny.model("sdxl"), tiny.clip("sdxl")
    path = tmp_path / "all.safetensors"
    elsewhere = {f"lora_unet_no_such.lora_{h}.weight": torch.ones(2, 2) for h in ("up", "down")}
    lora_file.write(path, everything(model, clip) | elsewhere)
    whole = lora_file.read(path)
    read, original = [], lora_file.read_some
    monkeypatch.setattr(
        lora_file, "read_some", lambda at, names: read.extend(names) or original(at, names)
    )
    text = {name for name in whole.tensors if name.startswith("text_encoders.")}
    for side, left in ((None, text | elsewhere.keys()), (clip, elsewhere.keys())):
        read.clear()
        file = parts.placed(on_disk(path), model, side)
        assert set(read) == whole.tensors.keys() - left and len(text) == 2
        assert all(file.tensors[name].is_meta == (name in left) for name in whole.tensors)
        assert all(torch.equal(file.tensors[name], whole.tensors[name]) for name in read)
        patched, _, report = loading.load(model, side, file, WHOLE)
        oracle, _, said = loading.load(model, side, whole, WHOLE)
        assert report == said and patched.patches.keys() == oracle.patches.keys()


def test_what_is_broken_says_so():
    from graft.adapters.file import AdapterFile
    from graft.host.files import loading, parts
    from graft.host.files.strengths import WHOLE
    from graft.loaders.source import in_memory

    model = tiny.model("sdxl")
    name = "lora_unet_output_blocks_0_1_proj_in"
    up, down = torch.ones(64, 4), torch.ones(4, 64)

    def refused(tensors, said):
        file = AdapterFile(tensors, {}, "it")
        with pytest.raises(ValueError, match=said):
            loading.load(model, None, file, WHOLE)
        with pytest.raises(ValueError, match=said):
            parts.take(in_memory(file), model, lambda names: names)

    ends = (f"{name}.lora_up.weight", f"{name}.lora_down.weight")
    differ = r"'it': diffusion_model.output_blocks.0.1.proj_in: up of shape \[64, 4\] and down of shape \[3, 64\]"
    refused({ends[0]: up, ends[1]: down[:3]}, differ)
    refused({ends[0]: up}, "only one half of its LoRA")
    generic = "diffusion_model.output_blocks.0.1.proj_in.lora_up.weight"
    refused({ends[0]: up, ends[1]: down, generic: up}, "twice, as lora_unet_.* and as diffusion_m")
    refused(
        {"lora_unet_no_such.lora_up.weight": up, "lora_unet_no_such.lora_down.weight": down},
        "None of",
    )
    nan = AdapterFile({ends[0]: up * float("nan"), ends[1]: down}, {}, "it")
    with pytest.raises(
        ValueError, match="'it': It has values that are no finite .* first is lora_unet"
    ):
        parts.take(in_memory(nan), model, lambda names: names)


def test_alphas_of_pefts_metadata_count():
    """diffusers keeps lora_alpha in the metadata: 8 with rank 4 doubles the change."""
    import json

    import comfy.lora

    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import WHOLE

    model = tiny.model("sdxl")
    file, oracle = written.written(model, "diffusers peft")
    stock = written.patched(model, oracle)
    said = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4})}
    patched, _, report = loading.load(model, None, AdapterFile(file, said, "it"), WHOLE)
    assert f"{len(file)} of {len(file)} tensors applied" in report
    weights = model.model.state_dict()
    for key, patches in patched.patches.items():
        before = weights[key].detach().float()
        made = comfy.lora.calculate_weight(patches, before.clone(), key)
        module = key.removeprefix("diffusion_model.").removesuffix(".weight")
        torch.testing.assert_close(
            made - before, 2 * (stock[module] - before), atol=1e-5, rtol=1e-5
        )


def test_text_encoders_of_every_program_are_read():
    """Three spellings of one layer give what ComfyUI's own loader makes of kohya's."""
    import comfy.sd

    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import WHOLE

    model, clip = tiny.model("sdxl"), tiny.clip("sdxl")
    generator = torch.Generator().manual_seed(2)
    up, down = (torch.randn(shape, generator=generator) for shape in ((64, 2), (2, 64)))
    kohya = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{kohya}.lora_up.weight": up, f"{kohya}.lora_down.weight": down}
    with torch.inference_mode():
        _, stock = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    (key,) = stock.patcher.patches
    for name in (
        kohya,
        "lora_te2_encoder_layers_0_self_attn_q_proj",  # as newer transformers name it
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
    ):
        file = AdapterFile({f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, {}, "it")
        _, patched, report = loading.load(model, clip, file, WHOLE)
        assert "2 of 2 tensors applied" in report, name
        (patch,) = patched.patcher.patches[key]
        assert torch.equal(patch[1].weights[0], up) and torch.equal(patch[1].weights[1], down)
