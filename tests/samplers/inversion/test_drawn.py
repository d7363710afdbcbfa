# SPDX-License-Identifier: Apache-2.0
"""Drawn inversions against diffusers' LEDITS++ ``compute_noise``, in its coordinates, with random denoisers."""

import math

import diffusers
import pytest
import torch
from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import compute_noise

from graft.samplers import KeyedNoise
from graft.samplers.inversion import INVERSIONS, replay
from tests.samplers.gaussian import network

DRAWN = [name for name in INVERSIONS.names() if INVERSIONS.get(name).is_drawn]
STEPS = 12
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def clean(batch=2, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 6, 6, generator=generator, dtype=torch.float64)


def drawn_by(outer):
    """Noise that is remembered, in the order of the levels."""
    noise, kept = KeyedNoise(outer), []

    def draw(like, sigma):
        kept.append(noise(like, sigma))
        return kept[-1]

    return draw, kept


def theirs(scheduler, sigmas, x, noises, d):
    """What LEDITS++ does with a scheduler: x_t drawn, z of each step, and x_{t-1} as it is gone on with."""
    signals = [1 / (1 + sigma**2) ** 0.5 for sigma in sigmas]
    states = [(x + n * s) * a for n, s, a in zip(noises, sigmas, signals, strict=False)] + [x]
    found, corrected = [], []
    for i, t in enumerate(scheduler.timesteps):
        y, sigma = states[i] / signals[i], sigmas[i]
        eps = (y - d(y, sigma)) / sigma
        z, states[i + 1] = compute_noise(scheduler, states[i + 1], states[i], t, eps, 1.0)
        found.append(z)
        corrected.append(states[i + 1] / (signals[i + 1] if i + 1 < len(sigmas) else 1.0))
    return found, corrected


def test_ddim_keeps_the_noise_of_diffusers():
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(STEPS)
    a = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = [*((1 - a) / a).sqrt().tolist(), 0.0]
    d, (draw, noises) = network(), drawn_by(3)
    made = INVERSIONS.get("ledits-ddim")().invert(d, clean(), sigmas, draw)
    zs, states = theirs(scheduler, sigmas, clean(), noises, d)
    for i, (z, state) in enumerate(zip(zs, states, strict=True)):
        if i < STEPS - 1:  # their last step has no noise, and goes to mu
            std = sigmas[i + 1] * (1 - (sigmas[i + 1] / sigmas[i]) ** 2) ** 0.5
            torch.testing.assert_close(made.rests[i] / std, z, rtol=0, atol=1e-5)
            torch.testing.assert_close(made.states[i + 1], state, rtol=0, atol=1e-5)
        else:
            assert not z.any()
            torch.testing.assert_close(made.states[-1] - made.rests[-1], state, rtol=0, atol=1e-5)


def test_dpmpp_keeps_the_noise_of_diffusers():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.double().tolist()[:-1]
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.timesteps = scheduler.timesteps[:-1]
    d, (draw, noises) = network(), drawn_by(3)
    made = INVERSIONS.get("ledits-dpmpp")().invert(d, clean(), sigmas, draw)
    # Their last latent is of the variance 1 at the last level, and so is the picture that is handed over.
    signal = 1 / (1 + sigmas[-1] ** 2) ** 0.5
    zs, states = theirs(
        scheduler, sigmas[:-1], clean() * signal, _unscaled(noises, sigmas, signal), d
    )
    for i, z in enumerate(zs):
        h = math.log(sigmas[i] / sigmas[i + 1])
        std = sigmas[i + 1] * math.sqrt(-math.expm1(-2 * h))
        torch.testing.assert_close(made.rests[i] / std, z, rtol=0, atol=1e-4)
        last = i == len(zs) - 1
        state = states[i] / signal if last else states[i]
        torch.testing.assert_close(made.states[i + 1], state, rtol=0, atol=1e-4)


def _unscaled(noises, sigmas, signal):
    """Noise for the scaled picture that makes the same states: y + s n = y signal + s n'."""
    gap = clean() * (1 - signal)
    return [n + gap / s for n, s in zip(noises, sigmas, strict=False)]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_down_is_exactly_to_the_picture_from_any_step(name, dtype):
    x, d = clean().to(dtype), network()
    sigmas = [14.0, 9.0, 5.0, 2.0, 0.9, 0.3, 0.08, 0.0]
    made = INVERSIONS.get(name)().invert(d, x, sigmas, KeyedNoise(1))
    torch.testing.assert_close(
        made.states[-1], x, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12
    )
    for first in range(7):
        assert torch.equal(replay(made, d, first=first), made.states[-1])


@pytest.mark.parametrize("name", DRAWN)
def test_the_states_are_noised_pictures_with_noise_of_their_own(name):
    n = 50_000
    x = torch.zeros(1, n, dtype=torch.float64)
    sigmas = [10.0, 4.0, 1.0, 0.0]
    made = INVERSIONS.get(name)().invert(lambda x, sigma: x * 0, x, sigmas, KeyedNoise(2))
    noise = torch.stack([made.states[i, 0] / sigmas[i] for i in range(3)])
    correlation = torch.corrcoef(noise)
    assert float((noise.std(dim=1) - 1).abs().max()) < 4 / (2 * n) ** 0.5
    assert float((correlation - torch.eye(3)).abs().max()) < 5 / n**0.5


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_the_same_in_any_batch(name):
    x, d = clean(3), network()
    sigmas = [14.0, 5.0, 1.0, 0.2, 0.0]
    whole, one = (
        INVERSIONS.get(name)().invert(d, part, sigmas, KeyedNoise(1)) for part in (x, x[:1])
    )
    torch.testing.assert_close(one.states, whole.states[:, :1], rtol=0, atol=1e-12)
    other = INVERSIONS.get(name)().invert(d, x, sigmas, KeyedNoise(2))
    assert float((other.states[0] - whole.states[0]).abs().mean()) > 1


def test_the_variance_of_what_is_kept_grows_as_the_paper_says():
    """Consecutive states have independent noise, so that what a step lacks has more variance than DDPM's noise."""
    x = torch.zeros(1, 40_000, dtype=torch.float64)
    made = INVERSIONS.get("ledits-ddim")().invert(
        lambda x, sigma: x * 0, x, [2.0, 1.0, 0.0], KeyedNoise(5)
    )
    # x_1 - mu = n_1 - sqrt(1 - up^2) n_2 with up^2 = 1 - 1/4 for unit noises: variance 1 + 1/4.
    assert float(made.rests[0].var()) == pytest.approx(1.25, rel=0.03)
