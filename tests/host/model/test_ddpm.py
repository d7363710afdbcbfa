# SPDX-License-Identifier: Apache-2.0
"""diffusers' UNet2DModel as a MODEL: its noise levels, its preconditioning, its samples, its place in the host."""

import math

import pytest
import torch

from tests.host import ddpms

pytestmark = pytest.mark.comfy
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def levels(schedule, predicts="epsilon"):
    from graft.host.model import ddpm

    return ddpm.make_sampling(ddpms.facts(schedule=schedule, predicts=predicts).scheduler)


def test_the_tables_by_their_formulas():
    """Ho et al. 2020: betas 1e-4..0.02 in 1000 steps. LDM: their roots are even. Nichol and Dhariwal 2021, eq. 17."""
    product = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000))
    assert levels("linear").sigma_max.item() == pytest.approx(
        math.sqrt((1 - product) / product), rel=1e-4
    )
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    product = math.prod(1 - (low + (high - low) * i / 999) ** 2 for i in range(1000))
    assert levels("scaled_linear").sigma_max.item() == pytest.approx(
        math.sqrt((1 - product) / product), rel=1e-4
    )
    cosine = levels("squaredcos_cap_v2").sigmas
    assert cosine[[0, -2, -1]].tolist() == pytest.approx([0.00643, 641.7, 20291], rel=1e-3)


def test_a_last_level_of_noise_alone_is_no_level_to_train_an_eps_network_at():
    from graft.host.model.sampling import HostSampling
    from graft.trainers.facts import facts

    for predicts, count in (("epsilon", 999), ("v_prediction", 1000), ("sample", 1000)):
        known = HostSampling(levels("squaredcos_cap_v2", predicts))
        assert len(known.sigmas) == count
        assert facts(known).is_zero_terminal == (count == 1000)
    assert len(HostSampling(levels("linear")).sigmas) == 1000


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_probed_preconditioning_is_the_table(predicts):
    from graft.host.model.sampling import of_model
    from graft.trainers.denoiser import c_out, c_skip
    from graft.trainers.facts import facts

    known = of_model(ddpms.model(predicts=predicts))
    s = known.sigmas.double()
    out, skip = {
        "epsilon": (s, torch.ones_like(s)),
        "v_prediction": (s / (s**2 + 1).sqrt(), 1 / (s**2 + 1)),
        "sample": (torch.ones_like(s), torch.zeros_like(s)),
    }[predicts]
    torch.testing.assert_close(
        c_out(known, known.sigmas).flatten().double(), out, rtol=2e-6, atol=0
    )
    torch.testing.assert_close(
        c_skip(known, known.sigmas).flatten().double(), skip, rtol=2e-6, atol=0
    )
    assert facts(known).family == {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[predicts]


def sampled(patcher, noise, timesteps, label, sampler):
    """What the host's sampler makes of noise at the levels of some time steps."""
    import comfy.sample

    from graft.host.text.labels import conditioning

    table = patcher.get_model_object("model_sampling").sigmas
    sigmas = torch.cat([table[timesteps.cpu()], torch.zeros(1)])
    if timesteps[0] < len(table) - 1:  # the host scales noise for the last level otherwise
        noise = noise * (1 + sigmas[0] ** 2).sqrt() / sigmas[0]
    given = (conditioning([label]), conditioning([label]), torch.zeros_like(noise))
    with torch.inference_mode():
        return comfy.sample.sample_custom(patcher, noise, 1.0, sampler, sigmas, *given, seed=0)


def stepped(network, scheduler, noise, label, **how):
    x, labels = noise, torch.full((len(noise),), label)
    with torch.no_grad():
        for t in scheduler.timesteps:
            made = network(x, t, class_labels=labels).sample
            x = scheduler.step(made, t, x, **how).prev_sample
    return x


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_draws_what_diffusers_draws(schedule, predicts, clip):
    import comfy.samplers
    from diffusers import DDIMScheduler

    patcher = ddpms.model(schedule=schedule, predicts=predicts, clip=clip)
    scheduler = DDIMScheduler.from_config(dict(patcher.model.ddpm.scheduler))
    scheduler.set_timesteps(10)
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = stepped(
        ddpms.twin(patcher), scheduler, noise, 2, eta=0.0, use_clipped_model_output=clip
    )
    sampler = comfy.samplers.sampler_object("ddim")
    ours = sampled(patcher, noise, scheduler.timesteps, 2, sampler)
    scale = theirs.abs().max().clamp(min=1)  # noise that a random network leaves in is large
    assert float((ours - theirs).abs().max() / scale) < 1e-4


@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_draws_what_diffusers_draws(clip):
    import comfy.samplers
    from diffusers import DDPMScheduler

    patcher = ddpms.model(clip=clip)
    scheduler = DDPMScheduler.from_config(dict(patcher.model.ddpm.scheduler))
    scheduler.set_timesteps(20)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    draws = [torch.Generator().manual_seed(2) for _ in range(2)]
    theirs = stepped(ddpms.twin(patcher), scheduler, noise, 4, generator=draws[0])
    drawn = {"noise_sampler": lambda *_: torch.randn(noise.shape, generator=draws[1])}
    sampler = comfy.samplers.ksampler("ddpm", drawn)
    ours = sampled(patcher, noise, scheduler.timesteps, 4, sampler)
    scale = theirs.abs().max().clamp(min=1)
    assert float((ours - theirs).abs().max() / scale) < 1e-4


def test_pictures_of_several_classes_in_one_batch_are_those_drawn_alone():
    import comfy.sample

    from graft.host.text import labels

    patcher = ddpms.model()
    positive, negative, empty = labels.conditionings(patcher, "3, 0 4", 2, (0, 0))
    assert empty.shape == (6, 1, 8, 8)
    noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0))

    def draw(noise, positive):
        given = (4, 3.0, "euler", "normal", positive, negative, torch.zeros_like(noise))
        with torch.inference_mode():
            return comfy.sample.sample(patcher, noise, *given, disable_pbar=True, seed=0)

    together = draw(noise, positive)
    for number, label in enumerate((3, 3, 0, 0, 4, 4)):
        alone = draw(noise[number : number + 1], labels.conditioning([label]))
        torch.testing.assert_close(together[number : number + 1], alone, rtol=1e-3, atol=1e-3)
    other = draw(noise[:1], labels.conditioning([1]))
    assert (together[:1] - other).abs().max() > 0.01  # the class does something


def test_every_layer_is_one_of_the_hosts_and_half_precision_is_near():
    import comfy.sample

    from graft.host.text.labels import conditioning

    patcher = ddpms.model()
    leaves = [
        m for m in patcher.model.diffusion_model.modules() if list(m.parameters(recurse=False))
    ]
    assert leaves and all(hasattr(m, "comfy_cast_weights") for m in leaves)
    low = patcher.clone()
    low.set_model_compute_dtype(torch.bfloat16)
    given = (3, 1.0, "euler", "normal", conditioning([1]), conditioning([1]))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full, half = (
            comfy.sample.sample(
                one, noise, *given, torch.zeros_like(noise), disable_pbar=True, seed=0
            )
            for one in (patcher, low)
        )
    assert not torch.equal(full, half)
    assert (full - half).abs().mean() < 0.1
    assert patcher.model.get_dtype() == torch.float32


def test_the_vae_loses_nothing():
    from graft.host.model.ddpm_vae import pixel_vae

    colors = torch.arange(256.0).div(255).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    colors[..., 1] = 1 - colors[..., 0]
    with torch.inference_mode():
        vae = pixel_vae(3)
        latent = vae.encode(colors)
        assert latent.shape == (2, 3, 16, 16)
        torch.testing.assert_close(latent.movedim(1, -1).float(), 2 * colors - 1)
        torch.testing.assert_close(vae.decode(latent).float(), colors, rtol=0, atol=1e-6)
        gray = pixel_vae(1)
        latent = gray.encode(colors)
        assert latent.shape == (2, 1, 16, 16)
        mean = colors.mean(-1, keepdim=True)
        torch.testing.assert_close(gray.decode(latent).float(), mean.expand(-1, -1, -1, 3))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"levels": "1,x"}, "levels is '1,x'"),
        ({"size": 8, "levels": "1,2,2,2,2"}, "cannot be halved 4 times"),
        ({"predicts": "speed"}, "Unknown prediction_type 'speed'"),
        ({"width": 7, "levels": "9999"}, "block_out_channels"),
        ({"width": 1024, "levels": "4,4", "layers": 8}, "million are possible. Lower width"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        ddpms.model(**changes)


def test_sides_that_the_levels_cannot_halve_are_refused():
    import comfy.sample

    from graft.host.text.labels import conditioning

    noise = torch.randn(1, 1, 9, 8)
    given = (2, 1.0, "euler", "normal", conditioning([1]), conditioning([1]), noise)
    with torch.inference_mode(), pytest.raises(ValueError, match="sides 2 px divide, not 8 x 9"):
        comfy.sample.sample(ddpms.model(), noise, *given, disable_pbar=True, seed=0)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    import sys

    from graft.host.model import ddpm

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RuntimeError, match="pip install diffusers"):
        ddpm.diffusers()
