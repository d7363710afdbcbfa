# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters in the host: against its own patches, on MODELs that share their weights, in training."""

import gc

import pytest
import torch
from torch.nn import functional as F

from tests.host import tiny

pytestmark = pytest.mark.comfy

TRANSFORMER = "; ".join(
    (
        "attn1i-attn1i; attn1i-attn2i; attn1i-ffni; attn1i-transo; attn1o-attn2i; attn1o-ffni; attn1o-transo",
        "attn2i-attn2i; attn2i-ffni; attn2i-transo; attn2o-ffni; attn2o-transo; ffni-ffni; ffni-transo; ffno-transo",
        "transo-transo; attn2c-attn2c",
    )
)
ALL = f"{TRANSFORMER}; resi-resi; resi-reso; reso-reso"


@pytest.fixture(scope="module", autouse=True)
def output(comfy, tmp_path_factory):
    import folder_paths

    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("output"))
    yield
    folder_paths.output_directory = before


def file(model, positions, seed=0, size=0.3, **settings):
    """Tensors of a network with values as training leaves them."""
    from graft.adapters import NETWORKS
    from graft.adapters.attach import Attached

    settings = {"rank": 4, "init": "pytorch", "positions": positions, **settings}
    with torch.inference_mode(False):
        made = Attached(model.model.diffusion_model, NETWORKS.get("bottleneck")(**settings), seed)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed + 1)
            for p in made.parameters().values():
                p.add_(size * torch.randn(p.shape, generator=generator))
        tensors = made.tensors()
        made.remove()
    return tensors


def put(wire, tensors, **strengths):
    from graft.host.files import result
    from graft.host.files.strengths import Strengths

    patched, _, report = result.apply_both(wire, None, tensors, Strengths(**strengths))
    assert report.complete, report.text
    return patched


def by_patches(model, tensors, din, dout):
    """The same by what ComfyUI has for it: SPECS 2.3, with relu and scale 1."""
    kept = {}

    def adapter(h, options):
        kind, number = options["block"]
        at = "middle_block.1" if kind == "middle" else f"{kind}_blocks.{number}.1"
        start = f"diffusion_model.{at}.transformer_blocks.{options['block_index']}.bottleneck"
        part = [
            tensors[f"{start}.{din}.{dout}.relu.{name}"]
            for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        ]
        return F.linear(F.relu(F.linear(h, *part[:2])), *part[2:])

    def store(h, options):
        kept["change"] = adapter(h, options)
        return h

    patched = model.clone()
    if (din, dout) == ("attn2o", "ffni"):
        patched.set_model_attn2_output_patch(lambda n, o: n + adapter(n, o))
    elif (din, dout) == ("attn1o", "attn2i"):
        patched.set_model_attn1_output_patch(lambda n, o: n + adapter(n, o))
    elif (din, dout) == ("attn2i", "attn2i"):
        patched.set_model_patch(lambda x, o: x + adapter(x, o), "middle_patch")
    elif dout == "attn2c":
        patched.set_model_attn2_patch(lambda n, c, v, o: (n, c + adapter(c, o), v + adapter(v, o)))
    else:
        if din == "attn2i":
            patched.set_model_patch(store, "middle_patch")
        else:
            patched.set_model_attn1_output_patch(store)
        patched.set_model_attn2_output_patch(lambda n, o: n + kept["change"])
    return patched


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
@pytest.mark.parametrize(
    "pair",
    [
        "attn2o-ffni",
        "attn1o-attn2i",
        "attn2i-attn2i",
        "attn2i-ffni",
        "attn1o-ffni",
        "attn2c-attn2c",
    ],
)
def test_it_is_what_the_patches_of_comfyui_make(family, pair):
    model = tiny.model(family)
    tensors = file(model, pair)
    plain = tiny.sample(model, family)
    ours = tiny.sample(put(model, tensors), family)
    theirs = tiny.sample(by_patches(model, tensors, *pair.split("-")), family)
    assert not torch.allclose(ours, plain, atol=1e-2)
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(tiny.sample(model, family), plain)


def test_clones_of_a_model_sample_right_in_any_order():
    model = tiny.model("sdxl")
    one, two = file(model, ALL), file(model, "attn2o-ffni", seed=5)
    with_one = put(model, one)
    with_both = put(with_one, two)
    wires = {"none": model, "one": with_one, "both": with_both, "two": put(model, two)}
    expected = {}
    for name in wires:  # each on a model of its own
        fresh = tiny.model("sdxl")
        for has, tensors in (("one", one), ("two", two)):
            fresh = put(fresh, tensors) if name in (has, "both") else fresh
        expected[name] = tiny.sample(fresh, "sdxl")
    assert len({float(value.sum()) for value in expected.values()}) == 4
    for name in ("one", "none", "both", "none", "two", "one", "both", "two", "none", "none"):
        assert torch.equal(tiny.sample(wires[name], "sdxl"), expected[name]), name


def test_a_clone_that_comes_and_goes_while_the_model_is_loaded_changes_nothing():
    """The host lets a clone of a loaded patcher eject and inject while patches are added to it."""
    model = tiny.model("sdxl")
    plain = tiny.sample(model, "sdxl")
    patched = put(model, file(model, "attn2o-ffni; resi-reso"))
    expected = tiny.sample(patched, "sdxl")
    lora = {
        f"diffusion_model.output_blocks.0.1.proj_in.{name}": 0.1 * torch.randn(shape)
        for name, shape in (("lora_up.weight", (64, 2)), ("lora_down.weight", (2, 64)))
    }
    with_lora = put(patched, lora)
    stock = patched.clone()
    stock.add_patches({"diffusion_model.out.2.bias": ("diff", (torch.ones(4),))}, 0.5)
    assert torch.equal(tiny.sample(patched, "sdxl"), expected)
    assert torch.equal(tiny.sample(model, "sdxl"), plain)
    assert not torch.equal(tiny.sample(with_lora, "sdxl"), expected)
    tiny.sample(patched, "sdxl")
    before = hooks(model)
    stock = patched.clone()
    stock.add_patches({}, 1.0)
    assert hooks(model) == before > 0
    del stock, with_lora
    gc.collect()
    assert hooks(model) == before  # also in the middle of a sampling
    kept = patched.clone()
    kept.add_patches({}, 1.0)
    assert torch.equal(tiny.sample(model, "sdxl"), plain) and hooks(model) == 0
    assert torch.equal(tiny.sample(patched, "sdxl"), expected)
    del patched, kept
    gc.collect()
    assert torch.equal(tiny.sample(model, "sdxl"), plain) and hooks(model) == 0


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def test_strengths():
    model = tiny.model("sdxl")
    tensors = file(model, "attn2o-ffni; reso-reso", scale=1.0)
    plain = tiny.sample(model, "sdxl")
    assert torch.equal(tiny.sample(put(model, tensors, model=0.0), "sdxl"), plain)
    assert torch.equal(tiny.sample(put(model, tensors, blocks="*=0"), "sdxl"), plain)
    half = {k: v * 0.5 if k.endswith("scale") else v for k, v in tensors.items()}
    expected = tiny.sample(put(model, half), "sdxl")
    torch.testing.assert_close(
        tiny.sample(put(model, tensors, model=0.5), "sdxl"), expected, rtol=1e-5, atol=1e-5
    )
    some = {k: v for k, v in tensors.items() if ".output_blocks.0." in k}
    assert 0 < len(some) < len(tensors)
    one = put(model, tensors, blocks="*=0; output_blocks.0=1")
    assert torch.equal(tiny.sample(one, "sdxl"), tiny.sample(put(model, some), "sdxl"))
    with pytest.raises(
        ValueError, match=r"strengths 'output_block.0' matches no layer that the file"
    ):
        put(model, tensors, blocks="output_block.0=1")


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_checkpointing_changes_no_gradient(family):
    from graft.adapters import NETWORKS
    from graft.adapters.attach import Attached
    from graft.host.model.trainee import trainee

    found = []
    for on in (False, True):
        with torch.inference_mode(), trainee(tiny.model(family), precision="fp32") as t:
            settings = {"rank": 4, "init": "pytorch", "positions": ALL, "activation": "silu"}
            network = Attached(t.diffusion_model, NETWORKS.get("bottleneck")(**settings), 0)
            t.checkpointing(on)
            x = tiny.latent(family, batch=2)
            out = t.diffusion_model(
                x.clone(),
                torch.tensor([10.0, 500.0]),
                context=tiny.conditioning(family)[0][0].repeat(2, 1, 1),
                **({"y": torch.ones(2, tiny.POOLED["sdxl"] + 6 * 256)} if family == "sdxl" else {}),
            )
            out.square().mean().backward()
            found.append([out.detach(), *(p.grad for p in network.parameters().values())])
            network.remove()
    assert all(g is not None and bool(g.any()) for g in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def train(model, network=None, steps=2, total=0, **more):
    from graft.adapters import NETWORKS
    from graft.host import engine
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    generator = torch.Generator().manual_seed(0)
    items = tuple(
        Item((f"a zork {i}",), pixels=torch.rand(64, 64, 3, generator=generator)) for i in range(2)
    )
    with torch.inference_mode():
        request = engine.Request(
            model,
            Dataset(items, resolution=64),
            tiny.kl_vae(),
            tiny.clip("sdxl"),
            network=network or NETWORKS.get("bottleneck")(rank=4, positions=ALL),
            objective=Objective(preserve=0.0),
            optimizer=Optimizer(AdamW(1e-2)),
            plan=Plan(steps, total, batch_size=2),
            **more,
        )
        return engine.train(request)


def test_a_run_hands_back_a_model_that_samples_with_what_was_learned():
    from graft.host.files import paths, result

    model = tiny.model("sdxl")
    plain = tiny.sample(model, "sdxl")
    out = train(model)
    count = len(out.adapter.tensors)
    assert f"{count} of {count} tensors applied. Bottleneck adapters: all of them" in out.report
    assert out.lora_model == {}
    assert out.adapter.metadata["ss_network_module"] == "graft.bottleneck"
    learned = tiny.sample(out.model, "sdxl")
    assert not torch.allclose(learned, plain, atol=1e-3)
    assert torch.equal(tiny.sample(put(tiny.model("sdxl"), out.adapter.tensors), "sdxl"), learned)
    path = result.save_lora(paths.loras_folder() / "bottled.safetensors", out.adapter)
    report = result.self_check(path, model)
    assert report.complete and report.own == report.total == len(out.adapter.tensors)
    assert "ComfyUI's Load LoRA does not" in report.text
    with pytest.raises(ValueError, match="None of the .* fits"):
        result.apply(tiny.model("sd3"), out.adapter.tensors)
    with pytest.raises(ValueError, match=r"expected shape \(4, "):
        result.apply(tiny.model("sd15"), file(tiny.model("sdxl"), "attn2c-attn2c"))


def test_an_interrupted_run_is_an_uninterrupted_one():
    whole = train(tiny.model("sdxl"), steps=4)
    first = train(tiny.model("sdxl"), steps=2, total=4)
    rest = train(tiny.model("sdxl"), steps=2, total=4, state=first.state)
    for key, value in whole.adapter.tensors.items():
        assert torch.equal(rest.adapter.tensors[key], value), key


def test_training_on_a_model_that_has_one():
    """The adapter on the wire is a part of the model: it stays as it is, and another identity is trained on."""
    from graft.adapters import NETWORKS
    from graft.host.runs import identity

    model = tiny.model("sdxl")
    tensors = file(model, ALL, size=0.05)
    wired = put(model, tensors)
    before = tiny.sample(wired, "sdxl")
    digests = [
        identity.model_digest(m)
        for m in (
            model,
            wired,
            put(model, tensors),
            put(model, tensors, model=0.5),
            put(model, file(model, ALL, seed=3)),
        )
    ]
    assert digests[1] == digests[2] and len(set(digests)) == 4
    for network in (NETWORKS.get("lora")(rank=2), None):
        out = train(wired, network)
        after = tiny.sample(out.model, "sdxl")
        assert not torch.allclose(after, before, atol=1e-3)
        assert torch.equal(tiny.sample(wired, "sdxl"), before)
        again = put(put(tiny.model("sdxl"), tensors), out.adapter.tensors)
        assert torch.equal(tiny.sample(again, "sdxl"), after)
