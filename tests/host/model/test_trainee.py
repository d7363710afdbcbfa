# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from graft.host.model.trainee import trainee
from graft.host.text.conditioning import Conditioner, Encoded
from tests.host import tiny

pytestmark = pytest.mark.comfy
NAMES = [*tiny.FAMILIES]


def cond_for(family, t, batch=2, tokens=7):
    maker = Conditioner(t.model, t.device)
    items = [
        maker.per_item(
            Encoded.from_conditioning(tiny.conditioning(family, seed=i, tokens=tokens)),
            width=64,
            height=64,
        )
        for i in range(batch)
    ]
    return maker.batch(items)


def loss_of(family, t, batch=2, sigma=0.7):
    d = t.denoiser
    clean = tiny.latent(family, batch=batch)
    noise = tiny.latent(family, batch=batch, seed=8)
    sigma = d.nearest(torch.full((batch,), sigma))
    return (
        (d(d.add_noise(sigma, noise, clean), sigma, cond_for(family, t, batch)) - clean)
        .square()
        .mean()
    )


def train(family, t, steps=3):
    """A few SGD steps; returns the losses and the gradients of the last step."""
    adapters = tiny.Attached(t.diffusion_model)
    losses = []
    try:
        for _ in range(steps):
            loss = loss_of(family, t)
            loss.backward()
            gradients = adapters.gradients()
            with torch.no_grad():
                for p, g in zip(adapters.parameters, gradients, strict=True):
                    if g is not None:
                        p -= 0.05 * g / (g.norm() + 1e-6)
            losses.append(loss.item())
    finally:
        adapters.remove()
    return losses, gradients


def lora(patcher, family, scale=0.1):
    """Patch one linear weight of the model as a Load LoRA node does."""
    with torch.inference_mode():
        out = patcher.clone()
        keys = [
            k for k in out.model_state_dict() if k.endswith(("attn1.to_q.weight", "qkv.weight"))
        ]
        shape = out.model_state_dict()[keys[0]].shape
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        out.add_patches({keys[0]: ("diff", (scale * noise,))})
        return out, keys[0]


def state(patcher):
    """Everything about a model object that training might leave behind."""
    model = patcher.model
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "forwards": [m.__dict__.get("forward") for m in model.modules()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "casts": [getattr(m, "comfy_cast_weights", None) for m in model.modules()],
        "functions": [len(getattr(m, "weight_function", ())) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "options": str(patcher.model_options),
        "objects": list(patcher.object_patches),
        "device": model.device,
    }


def assert_same_state(a, b):
    for key in a:
        if key == "weights":
            assert a[key].keys() == b[key].keys()
            assert all(
                torch.equal(v, b[key][k]) and v.dtype == b[key][k].dtype for k, v in a[key].items()
            )
        else:
            assert a[key] == b[key], key


def flags():
    import comfy.ldm.flux.math as flux
    import comfy.model_management as mm
    from comfy.cli_args import args

    return (
        getattr(mm, "in_training", None),
        mm.NUM_STREAMS,
        flux.apply_rope,
        flux.apply_rope1,
        [getattr(args, n, None) for n in ("disable_comfy_compiler", "disable_cuda_graphs")],
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


def loaded():
    import comfy.model_management as mm

    return [m.model for m in mm.current_loaded_models]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", NAMES)
def test_trains_between_equal_samples(family, precision):
    patcher = tiny.model(family)
    with torch.inference_mode():
        before = tiny.sample(patcher, family)
        mark, kept = state(patcher), flags()
        with trainee(patcher, precision=precision) as t:
            losses, gradients = train(family, t)
            assert t.compute_dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        assert_same_state(mark, state(patcher))
        assert flags() == kept
        assert patcher in loaded() and t.patcher not in loaded()
        after = tiny.sample(patcher, family)
    assert torch.equal(before, after)
    assert losses[-1] < losses[0]
    found = [g for g in gradients if g is not None]
    assert len(found) >= 0.9 * len(gradients) and all(g.isfinite().all() for g in found)
    assert not any(p.requires_grad or p.grad is not None for p in patcher.model.parameters())


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_gradients_do_not_depend_on_how_weights_were_made(family):
    results = []
    for inference in (False, True):
        with trainee(tiny.model(family, inference=inference), precision="fp32") as t:
            results.append(train(family, t, steps=2))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_is_that_of_finite_differences(family):
    """The whole way down: d loss / d parameter against a central difference."""
    with trainee(tiny.model(family), precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model)
        loss_of(family, t).backward()
        gradients = adapters.gradients()
        index = max(range(len(gradients)), key=lambda i: gradients[i].norm().item())
        p, g = adapters.parameters[index], gradients[index]
        with torch.no_grad():
            step = 1e-2 * g / g.norm()
            p += step
            high = loss_of(family, t)
            p -= 2 * step
            low = loss_of(family, t)
        adapters.remove()
    assert ((high - low) / 2e-2).item() == pytest.approx(g.norm().item(), rel=2e-2)


def test_loras_on_the_wire_are_trained_on_and_stay():
    base = tiny.model("sdxl")
    patched, key = lora(base, "sdxl")
    with torch.inference_mode():
        plain, changed = tiny.sample(base, "sdxl"), tiny.sample(patched, "sdxl")
        assert not torch.equal(plain, changed)
        with trainee(patched, precision="fp32") as t:
            inside = t.model.state_dict()[key].clone()
            train("sdxl", t)
        assert torch.equal(tiny.sample(patched, "sdxl"), changed)
        assert torch.equal(tiny.sample(base, "sdxl"), plain)
    with trainee(base, precision="fp32") as t:
        weight = t.model.state_dict()[key].clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(inside, weight + 0.1 * noise)


def test_object_patches_of_the_wire_are_part_of_the_model():
    import comfy.model_sampling as ms

    class Sampling(ms.ModelSamplingDiscrete, ms.V_PREDICTION):
        pass

    with torch.inference_mode():
        base = tiny.model("sdxl")
        patched = base.clone()
        patched.add_object_patch("model_sampling", Sampling(base.model.model_config, zsnr=True))
        before = tiny.sample(patched, "sdxl")
        old = base.model.model_sampling
        with trainee(patched) as t:
            assert t.denoiser.sigmas[-1] > 4000
            train("sdxl", t)
        assert base.model.model_sampling is old or base.model.model_sampling is not t.model
        assert torch.equal(tiny.sample(patched, "sdxl"), before)
    with trainee(base) as t:
        assert t.denoiser.sigmas[-1] < 15


def test_fp16_weights_are_computed_in_a_safe_dtype():
    patcher = tiny.model("sdxl", dtype=torch.float16)
    before = tiny.sample(patcher, "sdxl")
    for precision in ("fp32", "bf16", "auto"):
        seen = set()
        with trainee(patcher, precision=precision) as t:
            hook = t.diffusion_model.input_blocks[1][0].register_forward_hook(
                lambda m, a, y, seen=seen: seen.add(y.dtype)
            )
            train("sdxl", t, steps=1)
            hook.remove()
            assert seen == {t.compute_dtype}
            assert {p.dtype for p in t.diffusion_model.parameters()} == {torch.float16}
    assert torch.equal(tiny.sample(patcher, "sdxl"), before)


def test_bf16_weights_in_bf16():
    """The case that fails with inference tensors: nothing is cast, so the weight itself is saved."""
    patcher = tiny.model("sdxl", dtype=torch.bfloat16)
    before = tiny.sample(patcher, "sdxl")
    with trainee(patcher, precision="bf16") as t:
        train("sdxl", t, steps=2)
    assert torch.equal(tiny.sample(patcher, "sdxl"), before)


def test_two_in_sequence_with_sampling_between():
    patcher = tiny.model("sdxl")
    with torch.inference_mode():
        first = tiny.sample(patcher, "sdxl")
        with trainee(patcher) as t:
            one = train("sdxl", t)[0]
        between = tiny.sample(patcher, "sdxl")
        with trainee(patcher.clone()) as t:
            two = train("sdxl", t)[0]
        assert one == two
        assert torch.equal(first, between) and torch.equal(first, tiny.sample(patcher, "sdxl"))


def test_sampling_inside_sees_the_adapters():
    patcher = tiny.model("sdxl")
    before = tiny.sample(patcher, "sdxl")
    with trainee(patcher, precision="fp32") as t:
        adapters = tiny.Attached(t.diffusion_model)
        loss_of("sdxl", t).backward()
        with torch.no_grad():
            inside = tiny.sample(t.patcher, "sdxl", inference=False)
        adapters.gradients()
        loss_of("sdxl", t).backward()
        assert all(g is not None for g in adapters.gradients())
        t.reload()
        adapters.remove()
        with torch.no_grad():
            bare = tiny.sample(t.patcher, "sdxl", inference=False)
    assert not torch.equal(before, inside) and torch.equal(before, bare)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_everything_is_given_back_when_the_body_raises(error):
    patcher = tiny.model("flux")
    with torch.inference_mode():
        before = tiny.sample(patcher, "flux")
        mark, kept = state(patcher), flags()
        with pytest.raises(type(error)), trainee(patcher) as t:
            t.checkpointing(True)
            tiny.Attached(t.diffusion_model)  # never removed
            loss_of("flux", t).backward()
            raise error
        assert_same_state(mark, state(patcher))
        assert flags() == kept and patcher in loaded()
        assert torch.equal(tiny.sample(patcher, "flux"), before)
        with trainee(patcher) as t:
            train("flux", t, steps=1)


def test_everything_is_given_back_when_the_entry_raises(monkeypatch):
    import comfy.model_management as mm

    patcher = tiny.model("sdxl")
    with torch.inference_mode():
        before = tiny.sample(patcher, "sdxl")
        mark, kept = state(patcher), flags()
        load = mm.load_models_gpu

        def fail(models, *args, **kwargs):
            load(models, *args, **kwargs)
            if mm.in_training:
                raise mm.OOM_EXCEPTION("out of memory")

        monkeypatch.setattr(mm, "load_models_gpu", fail)
        with pytest.raises(mm.OOM_EXCEPTION), trainee(patcher):
            raise AssertionError("not reached")
        monkeypatch.undo()
        assert_same_state(mark, state(patcher))
        assert flags() == kept
        assert torch.equal(tiny.sample(patcher, "sdxl"), before)


def test_one_training_at_a_time():
    patcher = tiny.model("sdxl")
    with trainee(patcher), pytest.raises(RuntimeError, match="already"), trainee(patcher):
        raise AssertionError("not reached")
    with trainee(patcher):
        pass


def test_attention_without_a_backward_is_replaced():
    """A wire that asks for another attention (sage, flash) samples with it and trains without it."""
    calls = []

    def other(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs).detach()

    patcher = tiny.model("sdxl")
    patcher.model_options["transformer_options"]["optimized_attention_override"] = other
    with trainee(patcher, precision="fp32") as t:
        gradients = train("sdxl", t, steps=1)[1]
        assert not calls and all(g is not None for g in gradients)
    assert patcher.model_options["transformer_options"]["optimized_attention_override"] is other


def test_rope_without_a_backward_is_replaced(monkeypatch):
    """As hosts from 0.8 to 0.13 have it: an operator that autograd cannot enter."""
    import comfy.ldm.flux.math as flux
    import comfy.ldm.wan.model as wan

    patcher = tiny.model("flux")
    with trainee(patcher, precision="fp32") as t:
        expected = train("flux", t)[0]
    one, two = flux.apply_rope1, flux.apply_rope

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, turn):
            return one(x, turn)

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("Trying to backward through comfy_kitchen.apply_rope1.default")

    def opaque(x, turn):
        return Opaque.apply(x, turn)

    def opaque_pair(q, k, turn):
        return Opaque.apply(q, turn), Opaque.apply(k, turn)

    for module in (flux, wan):
        monkeypatch.setattr(module, "apply_rope1", opaque)
    monkeypatch.setattr(flux, "apply_rope", opaque_pair)
    with trainee(patcher, precision="fp32") as t:
        assert wan.apply_rope1 is not opaque
        assert train("flux", t)[0] == pytest.approx(expected, rel=1e-5)
    assert flux.apply_rope1 is opaque and flux.apply_rope is opaque_pair
    assert wan.apply_rope1 is opaque
    monkeypatch.undo()
    assert flux.apply_rope1 is one and flux.apply_rope is two


def refused(patcher, match, **kwargs):
    with pytest.raises(ValueError, match=match), trainee(patcher, **kwargs):
        raise AssertionError("not reached")


def test_refusals_name_what_came():
    import comfy.hooks
    from comfy.patcher_extension import WrappersMP

    base = tiny.model("sdxl")
    refused(base, "unknown precision 'fp16'", precision="fp16")

    hooked = base.clone()
    hooked.hook_patches = {comfy.hooks._HookRef(): {}}
    refused(hooked, "hooks")

    compiled = base.clone()
    optimized = torch.nn.Module()  # as torch.compile leaves it
    optimized._orig_mod = base.model.diffusion_model
    compiled.add_object_patch("diffusion_model", optimized)
    refused(compiled, "compiled .object patch diffusion_model")
    wrapped = base.clone()
    wrapped.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda *a: None)
    refused(wrapped, "compiled")

    int8 = tiny.model("sdxl")
    layer = int8.model.diffusion_model.input_blocks[0][0]
    layer._parameters["weight"] = torch.nn.Parameter(
        layer.weight.to(torch.int8), requires_grad=False
    )
    refused(int8, r"layer input_blocks.0.0 is quantised \(Parameter, int8\)")


def test_quantised_weights_are_refused_where_the_host_has_no_gradient_for_them(monkeypatch):
    import comfy.ops

    class QuantizedTensor(torch.Tensor):
        pass

    patcher = tiny.model("sdxl", inference=False)
    layer = patcher.model.diffusion_model.input_blocks[0][0]
    weight = layer.weight.detach().as_subclass(QuantizedTensor)
    layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    assert type(layer.weight).__name__ == "QuantizedTensor"
    monkeypatch.delattr(comfy.ops, "QuantLinearFunc", raising=False)
    refused(patcher, "quantised, which this ComfyUI cannot train")


def test_audio_video_models_are_refused():
    patcher = tiny.model("sdxl")

    class ModelSamplingAV(type(patcher.model.model_sampling)):
        pass

    patcher.add_object_patch("model_sampling", ModelSamplingAV(patcher.model.model_config))
    refused(patcher, "nested audio-video latents")


def test_dynamic_models_are_trained_on_a_copy():
    """A loader that can make a non-dynamic copy is asked for one; the wire's weights are not touched."""
    patcher, copy = tiny.model("sdxl"), tiny.model("sdxl")
    asked = []

    def clone(**kwargs):
        asked.append(kwargs)
        return copy

    patcher.is_dynamic = lambda: True
    patcher.clone = clone
    before = [id(p) for p in patcher.model.parameters()]
    with trainee(patcher) as t:
        train("sdxl", t, steps=1)
        assert t.patcher is copy
    assert asked == [{"disable_dynamic": True, "force_deepcopy": True}]
    assert [id(p) for p in patcher.model.parameters()] == before

    def cannot(**kwargs):
        raise RuntimeError("Cannot create non-dynamic delegate: cached_patcher_init")

    patcher.clone = cannot
    refused(patcher, "--disable-dynamic-vram")
