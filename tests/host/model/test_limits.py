# SPDX-License-Identifier: Apache-2.0
"""Adapters in a range of the sampling and inside of a mask: against the merged model, through the host's sampler."""

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

# Of tiny SDXL: attention on image and text, feed-forward, convolutions, the time embedding of a block.
LAYERS = (
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "output_blocks.0.1.proj_in",
    *(
        f"output_blocks.0.1.transformer_blocks.0.{name}"
        for name in ("attn1.to_q", "attn1.to_k", "attn2.to_q", "attn2.to_k", "attn2.to_v")
    ),
    "output_blocks.0.1.transformer_blocks.1.attn2.to_v",
    "output_blocks.0.1.transformer_blocks.0.attn2.to_out.0",
    "output_blocks.0.1.transformer_blocks.0.ff.net.0.proj",
)
NETWORKS = ("lora", "loha", "lokr", "dora", "oft", "boft", "full", "bottleneck")


@pytest.fixture(scope="module", autouse=True)
def host(comfy):
    return comfy


@pytest.fixture(scope="module")
def model(host):
    return tiny.model("sdxl")


def lora(model, names=LAYERS, seed=0, size=0.5, rank=2):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in names:
        weight = model.model.diffusion_model.get_submodule(name).weight
        down = torch.randn((rank, *weight.shape[1:]), generator=generator)
        up = torch.randn((weight.shape[0], rank, *(1,) * (weight.ndim - 2)), generator=generator)
        made[f"diffusion_model.{name}.lora_down.weight"] = down / weight[0].numel() ** 0.5
        made[f"diffusion_model.{name}.lora_up.weight"] = size * up
        made[f"diffusion_model.{name}.alpha"] = torch.tensor(1.5)
    return made


def network(model, name, seed=0):
    """What a training of a network leaves, as a file has it."""
    from graft.adapters import NETWORKS as KNOWN
    from graft.adapters.attach import Attached
    from graft.host.files import stock_form

    if name == "lora":
        return lora(model, seed=seed)
    settings = {"rank": 4} if name not in ("full", "ia3") else {}
    if name == "bottleneck":
        settings |= {"init": "pytorch", "positions": "attn2o-ffni; attn1i-transo; resi-reso"}
    elif name == "full":
        settings |= {"blocks": "output_blocks.0, input_blocks.1"}
    else:
        settings |= {"blocks": "output_blocks.0.1, input_blocks.1"}
    with torch.inference_mode(False):
        made = Attached(model.model.diffusion_model, KNOWN.get(name)(**settings), seed)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed + 1)
            for p in made.parameters().values():
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
        tensors = made.tensors()
        made.remove()
    return stock_form.exported(model, None, tensors)


def put(wire, tensors, strength=1.0, start=0.0, end=1.0, mask=None):
    from graft.adapters.file import AdapterFile
    from graft.host.files import loading
    from graft.host.files.strengths import Strengths
    from graft.host.model.limits import Limits

    with torch.inference_mode():
        patched, _, report = loading.load(
            wire,
            None,
            AdapterFile(tensors, {}, "it"),
            Strengths(strength),
            limits=Limits(start, end, mask),
        )
    return patched, report


def drawn(wire, family, scheduler="simple", steps=4):
    """Sampled by the host; of 4 simple steps the noise levels are at 0, 1/4, 2/4 and 3/4 of the sampling."""
    import comfy.sample

    with torch.inference_mode():
        empty = torch.zeros_like(tiny.latent(family))
        noise = comfy.sample.prepare_noise(empty, 5)
        return comfy.sample.sample(
            wire, noise, steps, 2.0, "euler", scheduler,
            tiny.conditioning(family), tiny.conditioning(family, seed=6), empty,
            disable_pbar=True, seed=5,
        ).clone()  # fmt: skip


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def close(one, other, tolerance=1e-5):
    scale = float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_of_ones_is_the_merged_model_and_one_of_zeros_the_base(model, name):
    tensors = network(model, name)
    plain = drawn(model, "sdxl")
    merged, said = put(model, tensors, 0.8)
    expected = drawn(merged, "sdxl")
    assert not torch.allclose(expected, plain, atol=1e-2 * float(plain.abs().max()))
    how = "Merged: no cost per step" if name != "bottleneck" else "as bottleneck adapters are"
    assert how in said
    hooked, said = put(model, tensors, 0.8, mask=torch.ones(1, 37, 21))
    assert "Hooked: " in said and "because of the mask" in said and "Left out" not in said
    close(drawn(hooked, "sdxl"), expected)
    none, _ = put(model, tensors, 0.8, mask=torch.zeros(1, 64, 64))
    assert torch.equal(drawn(none, "sdxl"), plain)
    assert torch.equal(drawn(model, "sdxl"), plain) and hooks(model) == 0


@pytest.mark.parametrize("name", ["lora", "dora", "oft", "full", "bottleneck"])
def test_a_range_of_all_steps_is_the_merged_model_and_one_of_none_the_base(model, name):
    tensors = network(model, name)
    plain, merged = drawn(model, "sdxl"), drawn(put(model, tensors)[0], "sdxl")
    ranged, said = put(model, tensors, end=0.9)
    assert "because of the range" in said
    close(drawn(ranged, "sdxl"), merged)
    never, _ = put(model, tensors, start=0.3, end=0.301)
    assert torch.equal(drawn(never, "sdxl"), plain)
    halves = [
        drawn(put(model, tensors, start=s, end=e)[0], "sdxl") for s, e in ((0, 0.3), (0.3, 1))
    ]
    for one, other in ((halves[0], halves[1]), (halves[0], merged), (halves[1], plain)):
        assert not torch.allclose(one, other, atol=1e-3 * float(plain.abs().max()))


def test_a_half_of_the_sampling_is_a_sampling_with_two_models(model):
    """The first step with the merged model, the second with the base, as two KSampler (Advanced) would have it."""
    import comfy.sample

    tensors = network(model, "lora")
    merged = put(model, tensors)[0]

    def part(wire, x, first, last):
        with torch.inference_mode():
            return comfy.sample.sample(
                wire, x if first == 0 else torch.zeros_like(x), 4, 2.0, "euler", "normal",
                tiny.conditioning("sdxl"), tiny.conditioning("sdxl", seed=6),
                torch.zeros_like(x) if first == 0 else x,
                disable_noise=first > 0, start_step=first, last_step=last,
                force_full_denoise=last == 4, disable_pbar=True, seed=5,
            ).clone()  # fmt: skip

    noise = tiny.latent("sdxl")
    expected = part(model, part(merged, noise, 0, 2), 2, 4)
    close(part(put(model, tensors, end=0.4)[0], noise, 0, 4), expected, 1e-4)
    expected = part(merged, part(model, noise, 0, 2), 2, 4)
    close(part(put(model, tensors, start=0.4)[0], noise, 0, 4), expected, 1e-4)


def one_step(wire, mask=None):
    """D of one noise level, which a layer's change reaches far and wide."""
    import comfy.sample

    with torch.inference_mode():
        noise = tiny.latent("sdxl", batch=2, height=8, width=16)
        return comfy.sample.sample(
            wire, noise, 1, 2.0, "euler", "normal",
            tiny.conditioning("sdxl"), tiny.conditioning("sdxl", seed=6), torch.zeros_like(noise),
            disable_pbar=True, seed=5,
        ).clone()  # fmt: skip


def test_the_text_counts_inside_of_the_mask_only(model):
    """Keys and values of the last layer that mixes places: beyond it only convolutions reach out of the mask."""
    name = "output_blocks.0.1.transformer_blocks.1.attn2"
    tensors = lora(
        model, [f"{name}.to_k", f"{name}.to_v", f"{name}.to_q", f"{name}.to_out.0"], size=2.0
    )
    seen = {}

    def watched(wire, key):
        module = model.model.diffusion_model.get_submodule(name)
        handle = module.register_forward_hook(lambda m, a, y: seen.setdefault(key, y.clone()))
        one_step(wire)
        handle.remove()

    mask = torch.zeros(1, 16, 32)
    mask[..., :16] = 1
    watched(model, "base")
    watched(put(model, tensors)[0], "merged")
    watched(put(model, tensors, mask=mask)[0], "masked")
    grid = {key: y.unflatten(1, (4, 8)) for key, y in seen.items()}
    close(grid["masked"][:, :, :4], grid["merged"][:, :, :4])
    assert torch.equal(grid["masked"][:, :, 4:], grid["base"][:, :, 4:])
    assert not torch.allclose(grid["merged"], grid["base"], atol=1e-2)


def test_masks_of_two_adapters_may_overlap(model):
    """Where both count it is both merged, whichever comes first; where one does, that one."""
    name = "output_blocks.0.1.transformer_blocks.1.attn2"
    names = [f"{name}.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")]
    first, second = (lora(model, names, seed=s, size=2.0) for s in (1, 2))
    seen = {}

    def watched(key, *puts):
        wire = model
        for tensors, mask in puts:
            wire = put(wire, tensors, mask=mask)[0]
        module = model.model.diffusion_model.get_submodule(name)
        handle = module.register_forward_hook(lambda m, a, y: seen.setdefault(key, y.clone()))
        one_step(wire)
        handle.remove()
        return seen[key].unflatten(1, (4, 8))

    left, right = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)
    left[..., :6], right[..., 2:] = 1, 1
    found = watched("masked", (first, left), (second, right))
    close(found[:, :, :2], watched("first", (first, None))[:, :, :2])
    close(found[:, :, 2:6], watched("both", (first, None), (second, None))[:, :, 2:6])
    close(found[:, :, 6:], watched("second", (second, None))[:, :, 6:])


def test_masks_for_each_picture_of_a_batch(model):
    tensors = lora(model)
    masks = torch.stack([torch.zeros(9, 9), torch.ones(9, 9)])
    found = one_step(put(model, tensors, mask=masks)[0])
    close(found[0], one_step(model)[0], 1e-4)
    close(found[1], one_step(put(model, tensors)[0])[1], 1e-4)


def test_several_adapters_with_other_ranges_on_one_wire(model):
    """A merged one between two with ranges; every order of MODELs on one model gives the same."""
    one, two, three = (lora(model, seed=s, size=0.3) for s in (1, 2, 3))
    a, _ = put(model, one, end=0.3)
    b, _ = put(a, two)
    c, _ = put(b, three, start=0.3, mask=torch.ones(1, 8, 8))
    zero, said = put(c, one, strength=0.0, end=0.5)
    wires = {"base": model, "a": a, "b": b, "c": c, "zero": zero}
    fresh = {}
    for name in wires:
        wire = tiny.model("sdxl")
        wire = put(wire, one, end=0.3)[0] if name != "base" else wire
        wire = put(wire, two)[0] if name in ("b", "c", "zero") else wire
        wire = (
            put(wire, three, start=0.3, mask=torch.ones(1, 8, 8))[0]
            if name in ("c", "zero")
            else wire
        )
        fresh[name] = drawn(wire, "sdxl")
    assert len({float(v.sum()) for v in fresh.values()}) == 4
    for name in ("c", "base", "a", "zero", "b", "c", "base"):
        assert torch.equal(drawn(wires[name], "sdxl"), fresh[name]), name
    clone = c.clone()
    clone.add_patches({"diffusion_model.out.2.bias": ("diff", (torch.ones(4),))}, 0.5)
    assert not torch.equal(drawn(clone, "sdxl"), fresh["c"])
    assert torch.equal(drawn(c, "sdxl"), fresh["c"])
    assert torch.equal(drawn(model, "sdxl"), fresh["base"]) and hooks(model) == 0


@pytest.mark.parametrize("name", ["dora", "oft"])
def test_what_is_not_a_sum_counts_upon_what_is_on_the_wire_before(model, name):
    first, second = lora(model, seed=4), network(model, name)
    expected = drawn(put(put(model, first)[0], second, 0.7)[0], "sdxl")
    hooked = put(put(model, first)[0], second, 0.7, mask=torch.ones(1, 8, 8))[0]
    close(drawn(hooked, "sdxl"), expected)
    later = put(put(model, second, 0.7, end=0.9)[0], first)[0]
    close(drawn(later, "sdxl"), drawn(put(put(model, second, 0.7)[0], first)[0], "sdxl"))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_other_families_have_ranges_and_no_masks(host, family):
    wire = tiny.model(family)
    root = wire.model.diffusion_model
    names = [n for n, m in root.named_modules() if hasattr(m, "in_features") and "blocks" in n]
    tensors = lora(wire, names, size=0.2)
    merged = drawn(put(wire, tensors)[0], family)
    ranged, said = put(wire, tensors, end=0.9)
    assert f"Hooked: {len(names)} layers, because of the range" in said
    close(drawn(ranged, family), merged, 1e-4)
    with pytest.raises(ValueError, match="A mask needs a UNet .* is none"):
        put(wire, tensors, mask=torch.ones(1, 8, 8))


def test_a_part_of_a_fused_weight(host):
    """diffusers' names of Flux are for parts of ComfyUI's qkv."""
    wire = tiny.model("flux")
    rows = wire.model.diffusion_model.get_submodule("double_blocks.0.img_attn.qkv").weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part in ("to_q", "to_v"):
        name = f"transformer.transformer_blocks.0.attn.{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, rows, generator=generator)
        tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(rows, 2, generator=generator)
    merged, said = put(wire, tensors)
    assert "4 of 4 tensors applied" in said
    expected = drawn(merged, "flux")
    assert not torch.allclose(expected, drawn(wire, "flux"), atol=1e-3)
    close(drawn(put(wire, tensors, end=0.9)[0], "flux"), expected, 1e-4)


@pytest.mark.parametrize("name", ["lora", "dora", "bottleneck"])
def test_a_model_in_half_precision(host, name):
    """bf16 has 8 bits: the merged weight is rounded, the hooked one is not, and both are near to fp32."""
    exact = tiny.model("sdxl")
    tensors = network(exact, name)
    expected = drawn(put(exact, tensors)[0], "sdxl")
    half = tiny.model("sdxl", dtype=torch.bfloat16)
    for limits in ({}, {"end": 0.9}, {"mask": torch.ones(1, 8, 8)}):
        close(drawn(put(half, tensors, **limits)[0], "sdxl").float(), expected, 5e-2)


def test_while_weights_are_offloaded(host):
    """The hooks never touch a weight: a model of which a part is on the CPU only samples the same."""
    wire = tiny.model("sdxl")
    ranged = put(put(wire, lora(wire, seed=1))[0], network(wire, "dora"), mask=torch.ones(1, 8, 8))[
        0
    ]
    expected = drawn(ranged, "sdxl")
    with torch.inference_mode():
        ranged.partially_unload(ranged.offload_device, ranged.model_size() // 2)
    assert torch.equal(drawn(ranged, "sdxl"), expected)
    drawn(wire, "sdxl")
    assert hooks(wire) == 0


def test_what_was_never_computed_is_said(model, caplog):
    name = "output_blocks.0.1.proj_in"
    wire = put(model, lora(model, [name, "input_blocks.0.0"]), end=0.9)[0]
    (hooked,) = (group[0].inject.__self__ for group in wire.injections.values())
    drawn(wire, "sdxl")
    assert not caplog.records
    hooked._seen = {"input_blocks.0.0"}  # as where a host computes the other without its forward
    hooked.release(wire)
    assert "1 of 2 layers of an adapter" in caplog.text and name in caplog.text


def test_what_has_no_place_in_the_picture_is_said(model):
    tensors = lora(model, ["time_embed.0", "output_blocks.0.1.proj_in"])
    patched, said = put(model, tensors, mask=torch.ones(1, 8, 8))
    assert (
        "Hooked: 1 layers" in said
        and "cannot be limited because of the mask: time_embed.0.weight" in said
    )
    assert "'it': 3 of 6 tensors applied" in said
    only = lora(model, ["time_embed.0"])
    with pytest.raises(ValueError, match="Nothing of it can be limited because of the mask: time_"):
        put(model, only, mask=torch.ones(1, 8, 8))
    close(
        drawn(put(model, only, end=0.9)[0], "sdxl"),
        drawn(put(model, only)[0], "sdxl"),
    )


def test_what_cannot_go_together_is_refused(model):
    from graft.host.model.limits import Limits
    from graft.host.model.trainable import refuse_untrainable

    for limits in ((0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="must be from 0 to 1, and start_percent the smaller"):
            Limits(*limits)
    with pytest.raises(ValueError, match="no finite numbers"):
        Limits(mask=torch.full((1, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        Limits(mask=torch.ones(3))
    tensors = lora(model)
    for wire in (put(model, tensors, end=0.5)[0], put(model, tensors, mask=torch.ones(1, 4, 4))[0]):
        with pytest.raises(ValueError, match="carries an adapter with a timestep range or a mask"):
            refuse_untrainable(wire)
    refuse_untrainable(put(model, tensors)[0])


def test_an_area_of_a_prompt_is_refused_and_leaves_nothing_behind(model):
    import comfy.sample

    wire = put(model, lora(model), mask=torch.ones(1, 8, 8))[0]
    plain = drawn(model, "sdxl")
    noise = tiny.latent("sdxl")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="4 x 8 of 8 x 8 latent pixels"):
        comfy.sample.sample(
            wire, noise, 1, 1.0, "euler", "normal",
            tiny.conditioning("sdxl", area=(8, 4, 0, 0)), tiny.conditioning("sdxl", seed=6),
            torch.zeros_like(noise), disable_pbar=True, seed=5,
        )  # fmt: skip
    assert torch.equal(drawn(model, "sdxl"), plain) and hooks(model) == 0


def test_a_replaced_attention_is_named(model):
    wire = put(model, lora(model), mask=torch.ones(1, 8, 8))[0]
    drawn(wire, "sdxl")
    for number in (0, 1):
        wire.set_model_attn2_replace(lambda q, k, v, o: q, "output", 0, number)
    with pytest.raises(RuntimeError, match="replaces the attention that reads it"):
        drawn(wire, "sdxl")


def test_the_graphs_own_attention_is_used(model):
    """Sage attention and the like come in the same place, and are called with and without the change."""
    calls = []

    def own(func, *args, **kwargs):
        calls.append(len(args))
        return func(*args, **kwargs)

    wire = put(model, lora(model), mask=torch.ones(1, 8, 8))[0]
    expected = drawn(wire, "sdxl")
    plain = model.clone()
    plain.model_options["transformer_options"]["optimized_attention_override"] = own
    drawn(plain, "sdxl")
    without = len(calls)
    other = put(plain, lora(model), mask=torch.ones(1, 8, 8))[0]
    assert torch.equal(drawn(other, "sdxl"), expected)
    assert (
        len(calls) > 2 * without > 0
    )  # two layers' attention is computed twice in each of the steps


def test_forwards_at_once_have_a_gate_each(model):
    """As on several devices: one at noise level 9, outside of the range, begins and ends while one at 1 is computed."""
    import threading
    from types import SimpleNamespace

    from graft.host.model.limits import Gate, Limits

    gate, found = Gate(Limits(start=0.5)), []
    started, ended = threading.Event(), threading.Event()

    class Network(torch.nn.Module):
        def forward(self, x, transformer_options):
            if x == "low":
                started.set()
                assert ended.wait(10)
            found.append((x, gate.is_on()))

    network = Network()
    levels = SimpleNamespace(percent_to_sigma=lambda share: {0.5: 5.0}[share])
    patcher = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=network), get_model_object=lambda name: levels
    )
    removers = gate.install(patcher)

    def run(x, sigma):
        network(x, transformer_options={"sigmas": torch.tensor([sigma])})

    thread = threading.Thread(target=run, args=("low", 1.0))
    thread.start()
    assert started.wait(10)
    run("high", 9.0)
    ended.set()
    thread.join(10)
    assert found == [("high", False), ("low", True)] and not gate.is_on()
    for remove in removers:
        remove()
    assert not network._forward_pre_hooks and not network._forward_hooks
