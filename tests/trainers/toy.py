# SPDX-License-Identifier: Apache-2.0
"""Toy denoisers in closed form, a toy network and toy data, for tests without ComfyUI."""

import torch
from torch import nn

from graft.trainers.data.batch import Batch

SIGMA_DATA = 0.5


class Toy:
    """D = c_skip x + c_out F for one family, F a small convolution conditioned on a number per sample."""

    def __init__(self, family: str = "eps", network: nn.Module | None = None):
        self.family, self.network = family, network
        low, high = (0.001, 0.999) if family == "flow" else (0.03, 14.6)
        self.sigmas = torch.linspace(low, high, 1000)

    def nearest(self, sigma):
        return (
            self.sigmas[(sigma[:, None] - self.sigmas).abs().argmin(1)]
            if self.family == "eps"
            else sigma
        )

    def add_noise(self, sigma, noise, clean):
        s = sigma.view(-1, *(1,) * (clean.ndim - 1))
        return (1 - s) * clean + s * noise if self.family == "flow" else clean + s * noise

    def combine(self, sigma, output, x):
        s = sigma.view(-1, *(1,) * (x.ndim - 1))
        if self.family in ("eps", "flow"):
            return x - s * output
        if self.family == "x0":
            return output + 0 * x
        data = 1.0 if self.family == "v" else SIGMA_DATA
        sign = -1 if self.family == "v" else 1
        skip = data**2 / (s**2 + data**2)
        return skip * x + sign * s * data / (s**2 + data**2).sqrt() * output

    def __call__(self, x, sigma, cond):
        return self.combine(sigma, self.network(x, sigma, cond), x)


class ToyNetwork(nn.Module):
    """A convolution and a linear layer, frozen, with names like a UNet's."""

    def __init__(self, channels: int = 4, width: int = 8):
        super().__init__()
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.attn2 = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        self.requires_grad_(False)

    def forward(self, x, sigma, cond):
        h = self.input(x / (1 + sigma.view(-1, 1, 1, 1))) + cond.view(-1, 1, 1, 1)
        h = h + self.attn2(h.movedim(1, -1)).movedim(-1, 1)
        return self.output(h)


class ToyData:
    """Seeded latents in two buckets; the condition is a number per picture or prompt."""

    def __init__(self, count: int = 7, priors: int = 3, preserve: float = 0.5):
        generator = torch.Generator().manual_seed(1)
        self.buckets = [(6, 6)] * count
        self.priors, self.preserve = priors, preserve
        self.clean = torch.randn(count, 4, 6, 6, generator=generator)

    def cond(self, items):
        return torch.tensor([0.1 * i for i in items])

    def prior_cond(self, priors):
        return torch.tensor([-0.3 * p for p in priors])

    def batches(self, items, draws):
        yield Batch(self.clean[list(items)], self.cond(items))
        if self.preserve > 0:
            priors = (draws.uniform("prior") * self.priors).long().tolist()
            latents, cond = self.clean[priors] * 0.5, self.prior_cond(priors)
            yield Batch(latents, cond, weight=self.preserve, keeps_base=True, use="prior")
