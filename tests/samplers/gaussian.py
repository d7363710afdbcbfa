# SPDX-License-Identifier: Apache-2.0
"""Data N(MU, C^2), whose denoiser and probability flow ODE have closed forms, and what samplers are tried with.

D(x; sigma) = (C^2 x + sigma^2 MU) / (C^2 + sigma^2). The ODE dx / dsigma = (x - D) / sigma keeps (x - MU) / sqrt(C^2 +
sigma^2), so from x at sigma_max the exact end is MU + (x - MU) C / sqrt(C^2 + sigma_max^2).
"""

import dataclasses

import torch

from graft.samplers import SAMPLERS, Levels
from graft.samplers.schedules.karras import Karras

MU, C = 0.3, 0.5
START = 80.0


def denoise(x, sigma):
    return (C**2 * x + sigma**2 * MU) / (C**2 + sigma**2)


def exact(x, sigma_max=START):
    """Where the ODE ends that begins at ``x``."""
    return MU + (x - MU) * C / (C**2 + sigma_max**2) ** 0.5


def karras(steps):
    """Karras' levels from 80 to 0.002, rho 7, and 0, in float64."""
    return torch.cat([Karras().levels(steps, None), torch.zeros(1, dtype=torch.float64)])


def table(count=1000):
    """SD's table: betas even in their roots from 0.00085 to 0.012, in float64, as diffusers has it."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, count, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    return ((1 - alphas) / alphas).sqrt()


def discrete(family="eps"):
    """The levels of a model with SD's table."""
    return Levels(family, table(), torch.arange(1000))


def quiet(name):
    """A sampler with its noise off."""
    kind = SAMPLERS.get(name)
    return kind(**{kind.noise_option: 0.0}) if kind.noise_option else kind()


def noisy(name):
    """A sampler that adds noise; None where it cannot."""
    kind = SAMPLERS.get(name)
    if not kind.noise_option:
        return None
    made = kind()
    return made if made.is_stochastic else dataclasses.replace(made, **{kind.noise_option: 1.0})


def no_noise(like, sigma):
    raise AssertionError("no noise is to be drawn")


def network(seed=0):
    """A denoiser that is no gaussian's: smooth, different at every level and place."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)

    def call(x, sigma):
        a, b, c = mix.to(x)
        h = torch.einsum("ij,bjhw->bihw", a, x / (1 + sigma**2) ** 0.5)
        return torch.einsum("ij,bjhw->bihw", b, torch.tanh(h)) + torch.einsum(
            "ij,bjhw->bihw", c, torch.sin(h + sigma / (1 + sigma))
        )

    return call
