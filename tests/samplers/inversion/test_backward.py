# SPDX-License-Identifier: Apache-2.0
"""A sampler backward: against diffusers' DDIM inversion, the exact ODE, and the way down again."""

import math

import diffusers
import pytest
import torch

from graft.samplers import Levels, sample
from graft.samplers.ddim import DDIM
from graft.samplers.inversion import INVERSIONS, replay
from graft.samplers.inversion.parts import course
from graft.samplers.schedules.karras import Karras
from tests.samplers.gaussian import MU, C, denoise, no_noise, table

SOLVED = [name for name in INVERSIONS.names() if not INVERSIONS.get(name).is_drawn]
TOP = 14.6


def levels(steps, low=0.03):
    made = Karras(sigma_min=low, sigma_max=TOP).levels(steps, None)
    return course(torch.cat([made, torch.zeros(1, dtype=torch.float64)]))


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MU + C * torch.randn(count, 4, 6, 6, generator=generator, dtype=torch.float64)


def mixture(x, sigma):
    """D of data at -1 or 1, each with a spread of 0.3, number by number: no gaussian's, and curved."""
    spread = 0.3**2 + sigma**2
    means = x.new_tensor([-1.0, 1.0])
    chances = (-((x[..., None] - means) ** 2) / (2 * spread)).softmax(-1)
    return (chances * (0.3**2 * x[..., None] + sigma**2 * means) / spread).sum(-1)


def inverted(name, x, steps, d=denoise, **options):
    return INVERSIONS.get(name)(**options).invert(d, x, levels(steps), no_noise)


def back(made, x, d=denoise):
    return float((replay(made, d) - x).abs().max())


def test_the_classic_inversion_is_that_of_diffusers():
    """With one iteration from the latent below: DDIMInverseScheduler asks at x_t with the time of x_{t+1}, too."""
    steps = 10
    scheduler = diffusers.DDIMInverseScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    a = 1 / (1 + table() ** 2)
    times = [int(t) for t in scheduler.timesteps]
    x = pictures()

    def eps(vp, sigma):
        return torch.tanh(vp * 0.7) * (1 + sigma / (1 + sigma)) / 2

    sigmas = ((1 - a) / a).sqrt()
    ladder = [float(sigmas[t]) for t in reversed(times)] + [0.0]

    def d(y, sigma):
        return y - sigma * eps(y / (1 + sigma**2) ** 0.5, sigma)

    made = INVERSIONS.get("ddim")(iterations=1, guess="latent").invert(d, x, ladder, no_noise)
    vp = x.clone()
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(sigmas[int(t)])
        vp = scheduler.step(eps(vp, sigma), int(t), vp).prev_sample
        ours = made.states[steps - 1 - i] / (1 + sigma**2) ** 0.5
        torch.testing.assert_close(ours, vp, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVED)
def test_the_way_up_has_the_order_of_the_way_down(name):
    """From a picture x at sigma_min the ODE goes to MU + (x - MU) sqrt((C^2 + top^2) / (C^2 + low^2))."""
    x = torch.full((1, 1), 1.1, dtype=torch.float64)
    exact = MU + (x - MU) * ((C**2 + TOP**2) / (C**2 + 0.03**2)) ** 0.5
    errors = []
    for steps in (40, 80, 160):
        made = INVERSIONS.get(name)(iterations=60, tolerance=1e-12)
        way = made.invert(denoise, x, levels(steps)[:-1], no_noise)
        errors.append(abs(float(way.states[0] - exact)))
    order = {"ddim": 1, "edm-heun": 2, "dpmpp-2m": 2}[name]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", SOLVED)
def test_the_error_of_the_way_down_falls_with_the_steps(name):
    options = {"iterations": 1, "sweeps": 1} if name == "dpmpp-2m" else {"iterations": 1}
    x = pictures()
    errors = [back(inverted(name, x, steps, **options), x) for steps in (10, 20, 40, 80)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 8


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("d", [denoise, mixture], ids=["gaussian", "mixture"])
def test_the_fixed_point_leads_back_to_the_picture(name, d):
    x = pictures()
    options = {"iterations": 60, "tolerance": 1e-9}
    if name == "dpmpp-2m":
        options["sweeps"] = 40
    made = inverted(name, x, 40, d, **options)
    assert back(made, x, d) < 1e-6
    if name == "ddim":
        again = sample(DDIM(), d, made.states[0], torch.tensor(made.sigmas), no_noise)
        assert float((again - x).abs().max()) < 1e-6
    assert made.residual <= 1e-6


def test_more_iterations_are_more_exact_and_the_slope_is_the_better_guess():
    x = pictures()
    by_slope = [back(inverted("ddim", x, 20, iterations=n), x) for n in (1, 2, 3, 5)]
    assert by_slope == sorted(by_slope, reverse=True)
    assert by_slope[0] < back(inverted("ddim", x, 20, iterations=1, guess="latent"), x) / 2


def test_a_picture_is_inverted_by_itself_in_any_batch():
    x = pictures(3)
    x[1] *= 5  # which needs more iterations
    whole = inverted("ddim", x, 12, mixture, iterations=8)
    for index in range(3):
        alone = inverted("ddim", x[index : index + 1], 12, mixture, iterations=8)
        torch.testing.assert_close(alone.states[:, 0], whole.states[:, index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVED)
def test_evaluations_are_counted(name):
    asked = []

    def counted(x, sigma):
        asked.append(sigma)
        return denoise(x, sigma)

    made = INVERSIONS.get(name)(iterations=1).invert(counted, pictures(), levels(8), no_noise)
    assert made.evaluations == len(asked)
    if name == "ddim":
        assert len(asked) == 8 and asked == sorted(asked)


def test_a_sample_that_cannot_be_solved_keeps_the_best_that_was_met():
    """D = 3 x: a step down is x' = x (3 - 2 r), r = sigma' / sigma, and w = 1 would overshoot at every step."""
    made = inverted("ddim", pictures(), 6, lambda x, sigma: 3 * x, iterations=30)
    assert bool(torch.isfinite(made.states).all())
    wild = inverted("ddim", pictures(), 6, lambda x, sigma: torch.sin(50 * x), iterations=30)
    assert bool(torch.isfinite(wild.states).all()) and wild.residual > 1e-3


def test_a_flow_is_inverted_in_its_own_coordinates():
    """x = (1 - t) y + t n of gaussian data: D = MU + C^2 (1 - t) (x - (1 - t) MU) / ((1 - t)^2 C^2 + t^2)."""

    def d(x, t):
        spread = (1 - t) ** 2 * C**2 + t**2
        return MU + C**2 * (1 - t) * (x - (1 - t) * MU) / spread

    x = pictures()
    sigmas = torch.linspace(1, 0, 201, dtype=torch.float64).tolist()
    known = Levels("flow", torch.linspace(0.001, 1, 1000, dtype=torch.float64))
    made = INVERSIONS.get("ddim")(iterations=50, tolerance=1e-10).invert(
        d, x, sigmas, no_noise, levels=known
    )
    assert float((made.states[0] - (x - MU) / C).abs().max()) < 0.03  # its noise, to first order
    assert float((replay(made, d, levels=known) - x).abs().max()) < 1e-6


def test_what_is_watched_is_every_level_of_every_sweep():
    seen = []
    made = INVERSIONS.get("dpmpp-2m")(sweeps=3, iterations=2)
    made.invert(
        denoise,
        pictures(),
        levels(5),
        no_noise,
        watch=lambda i, total, step: seen.append((i, total)),
    )
    assert seen == [(i, 15) for i in range(15)]
