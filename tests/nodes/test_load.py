# SPDX-License-Identifier: Apache-2.0
"""Load Adapter: every kind of file, from the folder and over a wire, with strengths by block."""

import inspect
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy


@pytest.fixture
def loras(comfy):
    """The host's loras folder; what is put there is gone afterwards."""
    from graft.host.files import paths

    folder = comfy / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()
    paths.refresh_loras()


@pytest.fixture
def load(comfy):
    from graft.nodes.load import LoadAdapter

    def call(model, file="", strength_model=1.0, strength_clip=1.0, strengths="", **wires):
        node = type("LoadAdapter", (LoadAdapter,), {"hidden": SimpleNamespace(unique_id="7")})
        with torch.inference_mode():
            return node.execute(model, file, strength_model, strength_clip, strengths, **wires).args

    return call


def bottlenecks(model, positions="attn2o-ffni; resi-reso"):
    from tests.host.model.test_bottlenecks import file

    return file(model, positions)


def lora(root, names, prefix="diffusion_model."):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in names:
        rows, columns = root.get_submodule(name).weight.shape
        made[f"{prefix}{name}.lora_up.weight"] = 0.1 * torch.randn(rows, 2, generator=generator)
        made[f"{prefix}{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    return made


def everything(model, clip):
    """What a file can have: LoRAs of the model and of a text encoder, bottleneck adapters, a new word."""
    from graft.adapters.tokens import BUNDLE

    unet, text = model.model.diffusion_model, clip.cond_stage_model
    layer = next(n for n, _ in text.named_modules() if n.endswith("layers.0.mlp.fc1"))
    words = {f"{BUNDLE}zork.clip_{k}": torch.ones(1, w) for k, w in (("l", 32), ("g", 64))}
    return {
        **lora(unet, ["output_blocks.0.1.proj_in", "middle_block.1.proj_in"]),
        **lora(text, [layer], "text_encoders."),
        **bottlenecks(model),
        **words,
    }


def write(folder, tensors, name="all.safetensors"):
    from graft.host.files import paths
    from graft.loaders import lora_file

    lora_file.write(folder / name, tensors, {})
    paths.refresh_loras()
    return name


def test_a_file_with_everything_in_it(load, loras):
    import comfy.sd

    from graft.adapters.bottleneck import is_bottleneck
    from graft.adapters.file import AdapterFile
    from graft.host.files import result
    from tests.host import tiny

    model, clip = tiny.model("sdxl"), tiny.clip("sdxl")
    tensors = everything(model, clip)
    before = tiny.sample(model, "sdxl")
    name = write(loras, tensors)
    patched, patched_clip, report = load(model, name, 0.8, 0.6, clip=clip)
    count = len(tensors) - 2
    own = sum(map(is_bottleneck, tensors))
    assert f"'all': {count} of {count} tensors applied, |dW| = " in report
    assert f"Bottleneck adapters: {own} of them" in report and "new words: zork" in report
    # What ComfyUI knows, by its own loader; and the rest by ours.
    plain = result.of_model(tensors)
    with torch.inference_mode():
        stock, stock_clip = comfy.sd.load_lora_for_models(model, clip, plain, 0.8, 0.6)
    only = {key: value for key, value in tensors.items() if is_bottleneck(key)}
    both, _, _ = load(stock, strength_model=0.8, adapter=AdapterFile(only, {}, "b"))
    sampled = tiny.sample(patched, "sdxl")
    assert torch.equal(sampled, tiny.sample(both, "sdxl"))
    assert not torch.allclose(sampled, tiny.sample(stock, "sdxl"), atol=1e-3)
    assert torch.equal(tiny.sample(model, "sdxl"), before)

    def encoded(clip, text):
        with torch.inference_mode():
            return clip.encode_from_tokens(clip.tokenize(text))

    assert torch.equal(encoded(patched_clip, "a cat"), encoded(stock_clip, "a cat"))
    assert not torch.equal(encoded(patched_clip, "a cat"), encoded(clip, "a cat"))
    assert not torch.equal(encoded(patched_clip, "a zork"), encoded(stock_clip, "a zork"))


def test_without_a_clip_its_parts_are_named(load):
    from graft.adapters.file import AdapterFile
    from tests.host import tiny

    model, clip = tiny.model("sdxl"), tiny.clip("sdxl")
    tensors = everything(model, clip)
    _, none, report = load(model, adapter=AdapterFile(tensors, {}, "mine"))
    assert none is None and f"{len(tensors) - 4} of {len(tensors) - 2} tensors applied" in report
    assert "new words zork need a CLIP" in report and "Connect a CLIP for its text" in report
    words = {key: value for key, value in tensors.items() if "zork" in key}
    with pytest.raises(ValueError, match="'mine' has nothing but the new words zork: connect"):
        load(model, adapter=AdapterFile(words, {}, "mine"))
    text = {key: value for key, value in tensors.items() if key.startswith("text_enc")}
    with pytest.raises(ValueError, match="'mine': None of the 2 .* Connect a CLIP"):
        load(model, adapter=AdapterFile(text, {}, "mine"))
    patched, bound, report = load(model, clip=clip, adapter=AdapterFile(words, {}, "mine"))
    assert report == "'mine': new words: zork (1 vector in clip_g and clip_l)" and bound is not clip


def test_strengths_act_on_their_blocks_alone(load):
    from graft.adapters.file import AdapterFile
    from tests.host import tiny

    model = tiny.model("sdxl")
    names = [f"output_blocks.{n}.1.transformer_blocks.0.attn1.to_q" for n in (0, 1)]
    file = AdapterFile(
        lora(model.model.diffusion_model, names) | bottlenecks(model, "attn2o-ffni"), {}, "two"
    )
    said = "output_blocks.0.1=1; output_blocks.1.1=0.5; middle_block=0; input_blocks=0"
    patched, _, report = load(model, strength_model=2.0, strengths=said, adapter=file)
    found = {key: patch[0][0] for key, patch in patched.patches.items()}
    assert found == {
        f"diffusion_model.{names[0]}.weight": 2.0,
        f"diffusion_model.{names[1]}.weight": 1.0,
    }
    (injections,) = patched.injections.values()
    held = injections[0].inject.__self__.strengths
    assert {name.split(".")[2]: value for name, value in held.items()} == {"0": 2.0, "1": 1.0}
    assert all("output_blocks" in name for name in held)
    off, _, _ = load(model, strengths="*=0", adapter=file)
    assert torch.equal(tiny.sample(off, "sdxl"), tiny.sample(model, "sdxl"))
    with pytest.raises(ValueError, match=r"'two': strengths 'output_blocks.7' matches no layer"):
        load(model, strengths="output_blocks.7=1", adapter=file)


def test_what_cannot_be_loaded_is_refused(load, loras):
    from graft.adapters.file import AdapterFile
    from graft.nodes.load import LoadAdapter
    from tests.host import tiny

    model = tiny.model("sdxl")
    tensors = bottlenecks(model)
    key = next(iter(tensors))
    broken = write(loras, tensors | {key: torch.full_like(tensors[key], float("nan"))})
    with pytest.raises(ValueError, match=f"'all' has values .* the first is {key}"):
        load(model, broken)
    with pytest.raises(ValueError, match="'mine': None of the .* fits .*another kind of model"):
        load(tiny.model("flux"), adapter=AdapterFile(tensors, {}, "mine"))
    some = {
        k: (v if "input_blocks" in k else v[..., :-1] if v.ndim else v) for k, v in tensors.items()
    }
    _, _, report = load(model, adapter=AdapterFile(some, {}, "mine"))
    fit = sum("input_blocks" in k for k in some)
    assert f"{fit} of {len(some)} tensors applied. Another shape than the model's: " in report
    check = LoadAdapter.validate_inputs
    assert check("all.safetensors", "a=1") is True and check(None, None) is True
    assert "must read pattern=number from -100 to 100" in check(None, "a=x")
    assert "Unknown LoRA file 'no.safetensors'" in check("no.safetensors", "")


def test_a_changed_file_is_read_anew(loras):
    from graft.nodes.load import LoadAdapter
    from tests.host import tiny

    name = write(loras, bottlenecks(tiny.model("sdxl")))
    before = LoadAdapter.fingerprint_inputs(name)
    assert LoadAdapter.fingerprint_inputs(name) == before
    write(loras, bottlenecks(tiny.model("sdxl"), "ffno-transo"))
    assert LoadAdapter.fingerprint_inputs(name) != before
    asked = inspect.signature(LoadAdapter.fingerprint_inputs).parameters
    assert set(asked) == set(inspect.signature(LoadAdapter.execute).parameters)
