# SPDX-License-Identifier: Apache-2.0
"""Guided sampling by the host's own samplers: right, the same in any batch, and without a trace in what it borrowed."""

import json
import logging
import math

import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

# Strength and beginning where six steps on 8 x 8 latents overshoot; levels of EDM begin at 80.
REACH = {"sdxl": (2.0, 0.0), "sd15": (2.0, 0.0), "sdxl_edm": (40.0, 0.5)}
METHODS = ("denoised", "network")
RGB = torch.tensor([26.0, 230.0, 128.0]) / 255 * 2 - 1


@pytest.fixture(scope="module")
def parts():
    from tests.host import inprocess

    inprocess.start()
    from graft.host.sampling import guidance
    from graft.samplers import guidance as pure

    return guidance, pure


def term(
    parts, loss="color", strength=40.0, target=None, reach=(0.0, 1.0), course="constant", **more
):
    pure = parts[1]
    made = pure.LOSSES.get(loss)(**more), pure.COURSES.get(course)()
    return pure.Term(*made, strength, *reach, target or pure.Target())


def levels(model, steps):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "normal", steps
    )


def sample(
    model, family="sdxl", batch=1, steps=20, sampler=None, cfg=1.0, latent=None, seed=5, **more
):
    import comfy.sample
    import comfy.samplers

    empty = torch.zeros_like(tiny.latent(family, batch=batch)) if latent is None else latent
    noise = torch.cat(
        [comfy.sample.prepare_noise(empty[:1], seed + i) for i in range(empty.shape[0])]
    )
    sampler = comfy.samplers.sampler_object("euler") if sampler is None else sampler
    conds = tiny.conditioning(family), tiny.conditioning(family, seed=6)
    sigmas = more.pop("sigmas", None)
    sigmas = levels(model, steps) if sigmas is None else sigmas
    more.setdefault("disable_pbar", True)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, *conds, empty, seed=seed, **more
    )


def everything(module):
    """Values, kinds and flags of all there is."""
    tensors = {
        name: (tensor.detach().clone(), tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    forwards = {name: m.__dict__.get("forward") for name, m in module.named_modules()}
    hooks = {
        name: len(m._forward_hooks) + len(m._forward_pre_hooks)
        for name, m in module.named_modules()
    }
    return tensors, forwards, hooks, {name: m.training for name, m in module.named_modules()}


def same(before, after):
    tensors, others = after[0], after[1:]
    assert others == before[1:]
    assert tensors.keys() == before[0].keys()
    for name, (tensor, *flags) in before[0].items():
        assert torch.equal(tensor, tensors[name][0]) and flags == list(tensors[name][1:]), name


def rgb_of(model, x0):
    latent_format = model.model.latent_format
    factors = torch.tensor(latent_format.latent_rgb_factors)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0])
    return torch.einsum("bchw,cr->brhw", x0, factors) + bias.view(1, 3, 1, 1)


def seeds_loop(model, is_through, strength):
    """A SAMPLER that is the loop of the course: its coordinates keep the variance, and DDIM has the noise of before."""
    import comfy.samplers

    def loop(denoiser, y, sigmas, extra_args=None, callback=None, disable=None):
        alphas = (1 / (1 + sigmas.double() ** 2)).tolist()
        x = y.double() * math.sqrt(alphas[0])
        for a, a_next in zip(alphas, alphas[1:], strict=False):
            with torch.enable_grad():
                x = x.detach().clone().requires_grad_()
                y = (x / math.sqrt(a)).float()
                sigma = math.sqrt((1 - a) / a)
                d = denoiser(y, y.new_full([len(y)], sigma), **extra_args)
                eps = (x - math.sqrt(a) * d.double()) / math.sqrt(1 - a)
                eps = eps if is_through else eps.detach()
                x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
                error = (rgb_of(model, x0.float()) - RGB.view(1, 3, 1, 1)).abs()
                loss = strength * error.mean(dim=(1, 2, 3)).sum()
                x_new = x - torch.autograd.grad(loss, x)[0]
            x, eps = x_new.detach(), eps.detach()
            x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps
        return x.float()

    return comfy.samplers.KSAMPLER(loop)


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_of_euler_are_the_seeds_loop(parts, method):
    model = tiny.model("sdxl", inference=False)
    with torch.inference_mode(False), torch.no_grad():
        loop = seeds_loop(model, method == "network", 40.0)
        expected = sample(model, sampler=loop, batch=2)
        plain = sample(model, batch=2)
    with torch.inference_mode():
        guided, _ = parts[0].guide(model, [term(parts)], method=method, decoder="fast")
        got = sample(guided, batch=2)
    scale = float(expected.abs().max())
    assert (got - expected).abs().max() < 1e-4 * scale
    assert (got - plain).abs().max() > 0.1 * scale


@pytest.mark.parametrize("family", ["sdxl", "sdxl_v", "sdxl_edm", "sd15", "sd3", "flux"])
@pytest.mark.parametrize("method", METHODS)
def test_every_family_is_drawn_to_the_color(parts, family, method):
    with torch.inference_mode():
        model = tiny.model(family)
        plain = sample(model, family, steps=6)
        strength, start = REACH.get(family, (40.0, 0.0))
        one = term(parts, strength=strength, reach=(start, 1.0))
        guided, _ = parts[0].guide(model, [one], method=method, decoder="fast")
        got = sample(guided, family, steps=6)
    process = model.model.latent_format.process_in
    far = [(rgb_of(model, process(x)) - RGB.view(1, 3, 1, 1)).abs().mean() for x in (plain, got)]
    assert far[1] < 0.95 * far[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["taesd", "kl"])
def test_what_is_borrowed_is_afterwards_as_it_was(parts, method, kind):
    with torch.inference_mode():
        model = tiny.model("sdxl")
        vae = tiny.vae("sdxl") if kind == "taesd" else tiny.kl_vae()
        modules = (model.model, vae.first_stage_model)
        before = [everything(m) for m in modules]
        options = json.dumps(model.model_options, default=str)
        wrappers, plain = str(model.wrappers), sample(model, steps=2)
        guided, _ = parts[0].guide(model, [term(parts)], method=method, vae=vae)
        kept = str(guided.wrappers), dict(guided.additional_models)
        got = sample(guided, steps=2)
        for module, was in zip(modules, before, strict=True):
            same(was, everything(module))
        assert json.dumps(model.model_options, default=str) == options
        assert str(model.wrappers) == wrappers and not model.additional_models
        assert (str(guided.wrappers), dict(guided.additional_models)) == kept
        assert not torch.equal(got, plain)
        assert torch.equal(sample(model, steps=2), plain)
        assert torch.equal(sample(guided, steps=2), got)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_borrowed_is_given_back_when_it_fails(parts, method, monkeypatch):
    import comfy.model_management as mm

    guidance = parts[0]
    with torch.inference_mode():
        model, vae = tiny.model("sdxl"), tiny.vae("sdxl")
        before = [everything(m) for m in (model.model, vae.first_stage_model)]
        flags = vars(mm).get("in_training"), vars(mm).get("NUM_STREAMS")
        guided, _ = guidance.guide(model, [term(parts)], method=method, vae=vae)

        def fail(*args, **kwargs):
            raise mm.InterruptProcessingException

        monkeypatch.setattr(guidance, "slope", fail)
        with pytest.raises(mm.InterruptProcessingException):
            sample(guided, steps=2)
    for module, was in zip((model.model, vae.first_stage_model), before, strict=True):
        same(was, everything(module))
    assert flags == (vars(mm).get("in_training"), vars(mm).get("NUM_STREAMS"))
    assert not guided.additional_models


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_is_guided_the_same_in_any_batch(parts, method):
    with torch.inference_mode():
        model = tiny.model("sdxl")
        guided, _ = parts[0].guide(model, [term(parts)], method=method, vae=tiny.vae("sdxl"))
        together = sample(guided, steps=4, batch=3)
        alone = sample(guided, steps=4, batch=1)
        plain = sample(model, steps=4, batch=3)[:1], sample(model, steps=4, batch=1)
    # The network itself computes a batch in another order than a picture.
    room = 10 * float((plain[0] - plain[1]).abs().max()) + 1e-5
    assert (together[:1] - alone).abs().max() < room * float(alone.abs().max())


def test_strength_zero_and_a_range_that_is_over_change_nothing(parts):
    with torch.inference_mode():
        model = tiny.model("sdxl")
        plain = sample(model, steps=4)
        for one in (term(parts, strength=0.0), term(parts, reach=(0.9, 1.0))):
            guided, _ = parts[0].guide(model, [one], decoder="fast")
            assert torch.equal(sample(guided, steps=4), plain)


@pytest.mark.parametrize(
    "name", ["heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "lcm"]
)
def test_samplers_of_other_kinds_are_guided(parts, name):
    import comfy.samplers

    with torch.inference_mode():
        model = tiny.model("sdxl_v")
        sampler = comfy.samplers.sampler_object(name)
        guided, _ = parts[0].guide(model, [term(parts)], decoder="fast")
        plain, got = (sample(m, "sdxl_v", steps=8, sampler=sampler) for m in (model, guided))
    process = model.model.latent_format.process_in
    far = [(rgb_of(model, process(x)) - RGB.view(1, 3, 1, 1)).abs().mean() for x in (plain, got)]
    assert far[1] < 0.9 * far[0]


def test_churn_draws_levels_between_and_is_guided_by_its_own_steps(parts):
    import comfy.samplers

    with torch.inference_mode():
        model = tiny.model("sdxl")
        sampler = comfy.samplers.ksampler("heun", {"s_churn": 20.0})
        guided, _ = parts[0].guide(model, [term(parts, strength=2.0)], decoder="fast")
        plain, got = (sample(m, steps=10, sampler=sampler) for m in (model, guided))
    process = model.model.latent_format.process_in
    far = [(rgb_of(model, process(x)) - RGB.view(1, 3, 1, 1)).abs().mean() for x in (plain, got)]
    assert far[1] < 0.9 * far[0]


def test_a_picture_is_drawn_to_another_one(parts, caplog):
    pure = parts[1]
    with torch.inference_mode():
        model, vae = tiny.model("sdxl"), tiny.kl_vae()
        images = vae.decode(tiny.latent("sdxl", batch=2, seed=11))
        from graft.host.sampling import guidance_targets

        target = guidance_targets.of_images(images)
        assert isinstance(target, pure.Target) and not target.images.is_inference()
        for loss in ("image", "perceptual"):
            last = []
            for strength in (1e-9, 20.0 if loss == "image" else 30.0):
                one = term(parts, loss, strength=strength, target=target)
                guided, recorder = parts[0].guide(model, [one], vae=vae)
                with caplog.at_level(logging.INFO):
                    sample(guided, steps=6, batch=2)
                assert "Guided 6 calls of the model" in caplog.messages[-1]
                last.append(recorder.traces[-1].lines[loss][-1])
            assert last[1] < 0.95 * last[0], loss


@pytest.mark.parametrize("what", ["kl", "taesd"])
def test_gradients_through_the_vae_are_those_of_finite_differences(parts, what):
    """Of the whole view, blocks computed twice and all, in a direction drawn at random."""
    from graft.host.sampling.guidance_view import GuidanceView
    from graft.samplers.guidance import Steps, slope

    with torch.inference_mode():
        model = tiny.model("sdxl")
        vae = tiny.kl_vae() if what == "kl" else tiny.vae("sdxl")
        vae.decode(tiny.latent("sdxl"))  # loads it
    one = term(parts, metric="l2", strength=1.0)
    view = GuidanceView(model, [one], "vae", vae)
    step = Steps([1.0, 0.0]).at(1.0)
    x = tiny.latent("sdxl")
    with view.differentiable():
        vae.first_stage_model.double()
        vae.vae_dtype, before = torch.float64, vae.vae_dtype
        try:
            gradient, _ = slope([one], x.double(), step, view.at(step, 0))
            d = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
            ends = [
                slope([one], x.double() + sign * 1e-3 * d, step, view.at(step, 0))[1][0][0]
                for sign in (1, -1)
            ]
        finally:
            vae.first_stage_model.float()
            vae.vae_dtype = before
    slope_there = step.gain * (ends[0] - ends[1]) / 2e-3
    assert slope_there == pytest.approx(float((gradient * d).sum()), rel=2e-2)


def test_a_latent_format_that_is_patched_on_the_wire_counts(parts):
    """As ComfyUI's ModelSamplingContinuousEDM patches that of Playground v2.5."""
    import comfy.latent_formats

    from graft.host.sampling.guidance_view import GuidanceView

    with torch.inference_mode():
        model, vae = tiny.model("sdxl").clone(), tiny.vae("sdxl")
        patch = comfy.latent_formats.SDXL_Playground_2_5()
        model.add_object_patch("latent_format", patch)
        vae.decode(tiny.latent("sdxl"))  # loads it
        view = GuidanceView(model, [term(parts)], "vae", vae)
        x = tiny.latent("sdxl")
        with view.differentiable(), torch.no_grad():
            picture = view._decode(x.clone(), False)[0]
        expected = vae.decode(patch.process_out(x)).movedim(-1, 1) * 2 - 1
    assert torch.allclose(picture.clamp(-1, 1), expected, atol=1e-4)


def test_nested_and_video_latents_are_refused(parts):
    from types import SimpleNamespace

    guidance = parts[0]
    with pytest.raises(ValueError, match="nested"):
        guidance._check_latents(SimpleNamespace(is_nested=True, ndim=4), None)
    with pytest.raises(ValueError, match="nested"):
        guidance._check_latents(torch.zeros(1, 1, 4, 4), [[1], [2]])
    with pytest.raises(ValueError, match=r"\[1, 16, 2, 4, 4\]"):
        guidance._check_latents(torch.zeros(1, 16, 2, 4, 4), None)


def test_a_guided_model_is_not_guided_again(parts):
    guided, _ = parts[0].guide(tiny.model("sdxl"), [term(parts)], decoder="fast")
    with pytest.raises(ValueError, match="guided already"):
        parts[0].guide(guided, [term(parts)], decoder="fast")


def test_rising_levels_are_refused(parts):
    with torch.inference_mode():
        model = tiny.model("sdxl")
        guided, _ = parts[0].guide(model, [term(parts)], decoder="fast")
        with pytest.raises(ValueError, match="SIGMAS that fall"):
            sample(guided, sigmas=levels(model, 4).flip(0))


def test_a_controlnet_is_refused_where_it_has_no_gradient(parts):
    import comfy.sample
    import comfy.samplers

    class Control:
        extra_hooks = previous_controlnet = None

        def get_extra_hooks(self):
            return []

    with torch.inference_mode():
        model = tiny.model("sdxl")
        guided, _ = parts[0].guide(model, [term(parts)], method="network", decoder="fast")
        cond = tiny.conditioning("sdxl", control=Control())
        with pytest.raises(ValueError, match="ControlNet takes no gradient"):
            comfy.sample.sample_custom(
                guided,
                tiny.latent(),
                1.0,
                comfy.samplers.sampler_object("euler"),
                levels(model, 2),
                cond,
                tiny.conditioning("sdxl"),
                torch.zeros_like(tiny.latent()),
                disable_pbar=True,
            )
