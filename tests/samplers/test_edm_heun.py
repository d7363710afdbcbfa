# SPDX-License-Identifier: Apache-2.0
"""Karras et al. 2022, Algorithm 2, on the analytic gaussian and against a longhand of it."""

import math

import pytest
import torch

from graft.samplers import KeyedNoise, sample
from graft.samplers.edm_euler import EDMEuler
from graft.samplers.edm_heun import EDMHeun
from tests.samplers import gaussian
from tests.samplers.gaussian import START, denoise, exact, karras, no_noise

# |error| of a start at y = 80 at N = 18, 40, 80, 160 with Karras' levels, rho 7, to the digits given.
TABLE = {
    EDMHeun: (0.02753, 0.004868, 0.001151, 0.000277),
    EDMEuler: (0.07667, 0.03501, 0.01760, 0.00883),
}
DIGITS = {EDMHeun: (5, 6, 6, 6), EDMEuler: (5, 5, 5, 5)}
STEPS = (18, 40, 80, 160)


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("row", range(4))
def test_errors_on_the_gaussian(kind, row):
    y = torch.tensor([START], dtype=torch.float64)
    end = sample(kind(), denoise, y, karras(STEPS[row]), no_noise)
    assert round(abs(float(end - exact(y))), DIGITS[kind][row]) == TABLE[kind][row]


def longhand(x, sigmas, correct):
    for i in range(len(sigmas) - 1):
        a, b = float(sigmas[i]), float(sigmas[i + 1])
        d = (x - denoise(x, a)) / a
        end = x + d * (b - a)
        if correct and b > 0:
            end = x + (d + (end - denoise(end, b)) / b) * (0.5 * (b - a))
        x = end
    return x


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"s_noise": 1.1, "s_tmin": 0.1},
        {"s_churn": 40.0, "s_tmin": 90.0},
        {"s_churn": 40.0, "s_tmax": 1e-4},
    ],
)
def test_without_churn_it_is_the_deterministic_sampler_bit_for_bit(kind, settings):
    x = START * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    sigmas = karras(18).float()
    end = sample(kind(**settings), denoise, x, sigmas, no_noise)
    assert torch.equal(end, longhand(x, sigmas, kind is EDMHeun))


def spread(kind, settings, sigmas, spread_at_start):
    """Mean and variance of the end, by the recursion of the sampler's own affine map: x' = A x + B + C z.

    With w = sigma^2 / (C^2 + sigma^2), D = x - w (x - MU): the slope is k (x - MU), k = w / sigma.
    """
    mean, variance, n = 0.0, spread_at_start**2, len(sigmas) - 1
    for a, b in zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False):
        gamma = min(settings.s_churn / n, 2**0.5 - 1)
        gamma = gamma if settings.s_tmin <= a <= (settings.s_tmax or 1e9) else 0.0
        hat = a * (1 + gamma)
        variance += settings.s_noise**2 * (hat**2 - a**2)
        k = hat / (gaussian.C**2 + hat**2)
        factor = 1 + k * (b - hat)
        if kind is EDMHeun and b > 0:
            k_ahead = b / (gaussian.C**2 + b**2)
            factor = 1 + 0.5 * (b - hat) * (k + k_ahead * factor)
        mean, variance = mean * factor, variance * factor**2
    return gaussian.MU + mean, variance**0.5


@pytest.mark.parametrize("kind", TABLE)
def test_the_stochastic_sampler_has_the_right_mean_and_spread(kind):
    """From N(MU, C^2 + 80^2), which is what the data are at 80. The error of the mean of n draws is c / sqrt n, that of
    their standard deviation c / sqrt(2 n): 4 of these, and the sampler's own bias is told apart by its closed form."""
    n = 40_000
    settings = kind(s_churn=40.0, s_tmin=0.05, s_tmax=50.0)
    sigmas = karras(80)
    start = (gaussian.C**2 + START**2) ** 0.5
    generator = torch.Generator().manual_seed(5)
    x = gaussian.MU + start * torch.randn(1, n, generator=generator, dtype=torch.float64)
    end = sample(settings, denoise, x, sigmas, KeyedNoise(7))
    mean, std = spread(kind, settings, sigmas, start)
    assert abs(float(end.mean()) - mean) < 4 * std / n**0.5
    assert abs(float(end.std()) - std) < 4 * std / (2 * n) ** 0.5
    assert mean == pytest.approx(gaussian.MU, abs=1e-9)
    biases = [spread(kind, settings, karras(steps), start)[1] - gaussian.C for steps in (320, 640)]
    assert abs(biases[1]) < (0.0002 if kind is EDMHeun else 0.01)
    assert math.log2(biases[0] / biases[1]) == pytest.approx(kind.order, abs=0.15)
    quiet = sample(kind(), denoise, x, sigmas, no_noise)
    assert float(torch.corrcoef(torch.cat([quiet, end]))[0, 1]) < 0.5  # the churn's noise decides


def test_the_churns_window_and_its_limit():
    """gamma = min(40 / 80, sqrt 2 - 1): the first step from 10 goes up to 14.142 by noise of variance 100."""
    asked = []

    def d(x, sigma):
        asked.append((sigma, float(x)))
        return torch.zeros_like(x)

    ones = lambda like, sigma: torch.ones_like(like)  # noqa: E731
    sigmas = torch.tensor([10.0, 0.0])
    sample(EDMEuler(s_churn=40.0), d, torch.zeros(1, 1), sigmas, ones)
    sample(EDMEuler(s_churn=0.2, s_noise=2.0), d, torch.zeros(1, 1), sigmas, ones)
    (high, x), (low, y) = asked
    assert (high, x) == (pytest.approx(14.142136), pytest.approx(10.0))
    assert (low, y) == (pytest.approx(12.0), pytest.approx(2 * 44**0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"s_churn": -1.0}, "s_churn is -1.0; it must be between"),
        ({"s_churn": float("inf")}, "s_churn is inf; it must be a finite number"),
        ({"s_tmin": 3.0, "s_tmax": 1.0}, "s_tmin is 3 and s_tmax 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EDMHeun(**settings)
