# SPDX-License-Identifier: Apache-2.0
"""What every sampler must satisfy, over the registry: its order by slope, its calls by counting, its noise by keys."""

import math

import pytest
import torch

from graft.samplers import SAMPLERS, KeyedNoise, evaluations, sample
from tests.samplers import gaussian
from tests.samplers.gaussian import START, denoise, exact, karras, no_noise, noisy, quiet

ODE = [name for name in SAMPLERS.names() if SAMPLERS.get(name).order]
NOISY = [name for name in SAMPLERS.names() if noisy(name)]
LEVELS = gaussian.discrete()


def error(name, steps):
    x = torch.tensor([START], dtype=torch.float64)
    end = sample(quiet(name), denoise, x, karras(steps), no_noise, levels=LEVELS)
    return abs(float(end - exact(x)))


@pytest.mark.parametrize("name", ODE)
def test_the_declared_order_is_the_slope_of_the_error(name):
    errors = [error(name, steps) for steps in (40, 80, 160)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(SAMPLERS.get(name).order, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("ends_at_zero", [True, False])
def test_d_is_asked_for_as_often_as_is_said(name, ends_at_zero):
    sampler, asked = SAMPLERS.get(name)(), []
    sigmas = karras(9) if ends_at_zero else karras(9)[:-1]

    def counted(x, sigma):
        asked.append(sigma)
        return denoise(x, sigma)

    sample(sampler, counted, torch.ones(1, 2), sigmas, KeyedNoise(0), levels=LEVELS)
    steps = 9 if ends_at_zero else 8
    assert len(asked) == evaluations(sampler, sigmas)
    assert len(asked) == (steps if sampler.calls == 1 else 2 * steps - ends_at_zero)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_with_the_noise_off_none_is_drawn(name):
    sampler = quiet(name)
    assert not sampler.is_stochastic
    sample(sampler, denoise, torch.ones(1, 2), karras(5), no_noise, levels=LEVELS)


@pytest.mark.parametrize("name", NOISY)
def test_a_sample_is_the_same_in_a_batch_of_any_size(name):
    x = 80 * torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    d, sigmas = gaussian.network(), karras(6)

    def run(x, seed):
        return sample(noisy(name), d, x, sigmas, KeyedNoise(seed), levels=LEVELS)

    whole = run(x, 1)
    torch.testing.assert_close(run(x[:1], 1), whole[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(run(x[:2], 1), whole[:2], rtol=0, atol=1e-5)
    assert torch.equal(run(x, 1), whole)
    assert float((run(x, 2) - whole).abs().mean()) > 0.01
    assert float((run(x[[0, 0]], 1).diff(dim=0)).abs().mean()) > 0.01


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_single(name, dtype):
    x = torch.ones(1, 4, 2, 2, dtype=dtype)
    kinds = set()

    def d(x, sigma):
        kinds.add(x.dtype)
        return denoise(x, sigma)

    end = sample(SAMPLERS.get(name)(), d, x, karras(4), KeyedNoise(0), levels=LEVELS)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert end.dtype == wanted and kinds == {wanted} and bool(torch.isfinite(end).all())


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_between_equal_levels_nothing_happens(name):
    sampler, x = quiet(name), torch.ones(1, 4, 2, 2)
    plain = torch.tensor([10.0, 3.0, 1.0, 0.0])
    twice = torch.tensor([10.0, 10.0, 3.0, 3.0, 1.0, 0.0])
    d = gaussian.network()
    ends = [sample(sampler, d, x, s, no_noise, levels=LEVELS) for s in (plain, twice)]
    assert torch.equal(*ends)
    assert evaluations(sampler, plain) == evaluations(sampler, twice)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_what_is_watched_is_each_step(name):
    seen = []
    sigmas = karras(5)
    end = sample(
        SAMPLERS.get(name)(),
        denoise,
        torch.ones(1, 2),
        sigmas,
        KeyedNoise(0),
        levels=LEVELS,
        watch=lambda i, step: seen.append((i, step)),
    )
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[-1][1].x is end
    for _, step in seen:
        torch.testing.assert_close(step.denoised, denoise(step.asked, step.sigma))


@pytest.mark.parametrize("name", ["edm-euler", "ddim", "tcd"])
def test_levels_that_are_split_draw_the_same_noise(name):
    sampler, x, d = noisy(name), torch.ones(2, 4, 3, 3), gaussian.network()
    if name == "edm-euler":
        sampler = type(sampler)(
            s_churn=100.0
        )  # gamma is at its limit in the whole and in the parts
    sigmas, noise = karras(8), KeyedNoise(3)
    whole = sample(sampler, d, x, sigmas, noise, levels=LEVELS)
    half = sample(sampler, d, x, sigmas[:5], noise, levels=LEVELS)
    assert torch.equal(sample(sampler, d, half, sigmas[4:], noise, levels=LEVELS), whole)
