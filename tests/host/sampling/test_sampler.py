# SPDX-License-Identifier: Apache-2.0
"""Our SAMPLER in the host's own sampling: its callback, noise, masks, interruption, and what it refuses."""

import types

import pytest
import torch

from graft.host.sampling import levels
from graft.host.sampling.sampler import build, describe, sampler
from graft.samplers import SAMPLERS, course
from graft.samplers.edm_heun import EDMHeun
from graft.samplers.schedules.discrete import Discrete
from tests.host import tiny
from tests.host.sampling.guiding import run

pytestmark = pytest.mark.comfy


def sigmas_of(model, steps=4):
    return course(Discrete(), steps, levels.of_model(model))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl_v", "sdxl_edm"])
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_samples_every_family_that_it_can(name, family):
    model = tiny.model(family)
    settings = SAMPLERS.get(name)()
    if settings.needs_times and family == "sdxl_edm":
        with pytest.raises(ValueError, match="needs an eps or v model with time steps, and an EDM"):
            run(model, family, sampler(settings), sigmas_of(model))
        return
    out, denoised = run(model, family, sampler(settings), sigmas_of(model), batch=2)
    for one in (out, denoised):
        assert one["samples"].shape == (2, 4, 8, 8) and bool(torch.isfinite(one["samples"]).all())
    again, _ = run(model, family, sampler(settings), sigmas_of(model), batch=2)
    assert torch.equal(again["samples"], out["samples"])


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("name", ["edm-heun", "edm-euler", "ddim", "dpmpp-2m"])
def test_flow_models_are_sampled_without_noise_and_refused_with_it(name, family):
    model = tiny.model(family)
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    out, _ = run(model, family, sampler(SAMPLERS.get(name)()), sigmas)
    assert bool(torch.isfinite(out["samples"]).all())
    kind = SAMPLERS.get(name)
    if kind.noise_option:
        with pytest.raises(ValueError, match=f"{name} adds noise .*a flow model.*to 0"):
            run(model, family, sampler(kind(**{kind.noise_option: 0.9})), sigmas)


@pytest.mark.parametrize("name", ["edm-heun", "ddim", "lcm"])
def test_a_sample_is_that_of_the_same_place_in_a_larger_batch(name):
    kind = SAMPLERS.get(name)
    settings = kind(**{kind.noise_option: 1.0})
    model = tiny.model("sdxl")
    sigmas = sigmas_of(model)
    four, _ = run(model, "sdxl", sampler(settings), sigmas, batch=4)
    two, _ = run(model, "sdxl", sampler(settings), sigmas, batch=2)
    torch.testing.assert_close(two["samples"], four["samples"][:2], rtol=0, atol=1e-4)


def test_the_seed_of_the_noise_is_that_of_the_sampler():
    model = tiny.model("sdxl")
    settings = EDMHeun(s_churn=20.0)
    first, second = (
        run(model, "sdxl", sampler(settings), sigmas_of(model), seed=seed)[0]["samples"]
        for seed in (5, 6)
    )
    assert not torch.equal(first, second)


def test_the_older_node_samples_the_same():
    """SamplerCustom, which has no guider, with the same noise, cfg and prompts."""
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    model = tiny.model("sdxl")
    sigmas, ours = sigmas_of(model), sampler(EDMHeun(s_churn=3.0))
    advanced, _ = run(model, "sdxl", ours, sigmas)
    empty = {"samples": torch.zeros_like(tiny.latent("sdxl"))}
    conds = tiny.conditioning("sdxl"), tiny.conditioning("sdxl", seed=6)
    execute = getattr(SamplerCustom, "execute", None) or SamplerCustom().sample
    with torch.inference_mode():
        done = execute(model, True, 5, 2.0, *conds, ours, sigmas, empty)
    custom = getattr(done, "args", done)[0]
    assert torch.equal(custom["samples"], advanced["samples"])


def test_the_callback_is_told_what_the_hosts_samplers_tell():
    model, told, host = tiny.model("sdxl"), [], []
    sigmas = sigmas_of(model)

    def listening(inner, into):
        def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
            def both(said):
                into.append({k: v.clone() if torch.is_tensor(v) else v for k, v in said.items()})
                callback(said)

            return inner(model, x, sigmas, extra_args=extra_args, callback=both, disable=disable)

        return sample

    import comfy.samplers
    from comfy.k_diffusion.sampling import sample_heun

    ours = comfy.samplers.KSAMPLER(listening(sampler(EDMHeun()).sampler_function, told))
    theirs = comfy.samplers.KSAMPLER(listening(sample_heun, host))
    a, _ = run(model, "sdxl", ours, sigmas)
    b, _ = run(model, "sdxl", theirs, sigmas)
    torch.testing.assert_close(a["samples"], b["samples"], rtol=0, atol=1e-4)
    assert len(told) == len(host) == 4
    for x, y in zip(told, host, strict=True):
        assert set(x) == set(y) and x["i"] == y["i"]
        for key in ("sigma", "sigma_hat", "x", "denoised"):
            torch.testing.assert_close(x[key], y[key], rtol=1e-4, atol=1e-4)


def test_a_mask_keeps_what_is_outside_of_it():
    model, clean = tiny.model("sdxl"), tiny.latent("sdxl")
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1.0
    settings = EDMHeun(s_churn=10.0)
    out, _ = run(model, "sdxl", sampler(settings), sigmas_of(model), samples=clean, mask=mask)
    torch.testing.assert_close(out["samples"][..., :4], clean[..., :4], rtol=1e-4, atol=1e-4)
    assert float((out["samples"][..., 4:] - clean[..., 4:]).abs().mean()) > 0.1


def test_an_interruption_is_felt_between_evaluations():
    import comfy.model_management as mm

    model = tiny.model("sdxl")
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        run(model, "sdxl", sampler(EDMHeun()), sigmas_of(model))
    mm.interrupt_current_processing(False)


def test_latents_of_several_kinds_are_refused():
    """The host packs nested latents into [B, 1, N] before it asks the sampler."""
    network = types.SimpleNamespace(
        latent_format=types.SimpleNamespace(latent_dimensions=3), model_sampling=None
    )
    model = types.SimpleNamespace(inner_model=types.SimpleNamespace(inner_model=network))
    with pytest.raises(ValueError, match="several in one .nested"):
        sampler(EDMHeun()).sampler_function(model, torch.zeros(1, 1, 9), torch.tensor([1.0, 0.0]))


def test_the_hosts_nested_latents_come_packed_like_that():
    import comfy.utils

    packed, _ = comfy.utils.pack_latents([torch.zeros(2, 4, 3, 8, 8), torch.zeros(2, 8, 5, 16)])
    assert packed.ndim == 3 and packed.shape[:2] == (2, 1)


def test_the_evaluations_are_told_for_the_sigmas():
    """Heun asks twice a step, once for that to 0: 2 * 18 - 1 = 35, the published number of evaluations."""
    sigmas = torch.cat([torch.linspace(80, 1, 18), torch.zeros(1)])
    said = describe(EDMHeun(), sigmas)
    assert said == (
        "edm-heun: second order, adds no noise\n18 steps, 35 evaluations of the model (NFE)"
    )
    assert "NFE 2 N - 1 for N steps" in describe(EDMHeun())
    assert "adds noise (s_churn 40)" in describe(EDMHeun(s_churn=40.0))
    with pytest.raises(ValueError, match="SIGMAS has no level"):
        describe(EDMHeun(), torch.zeros(0))


def test_widgets_go_to_the_samplers_that_have_them():
    churn = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.01}
    settings, notes = build("edm-heun", "", -1.0, **churn)
    assert (settings, notes) == (EDMHeun(**churn), [])
    settings, notes = build("tcd", "", 0.6, **churn)
    assert settings.gamma == 0.6 and notes == ["tcd has no s_churn: 3 is not used."]
    settings, notes = build("ddim", "eta=0.25", -1.0, s_churn=0.0)
    assert settings.eta == 0.25 and not notes
    _, notes = build("edm-heun", "", 0.5, s_churn=0.0)
    assert notes == ["edm-heun has no eta: 0.5 is not used."]
    with pytest.raises(ValueError, match="Did you mean s_churn"):
        build("edm-heun", "s_chrn=3", -1.0)
