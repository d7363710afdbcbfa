# SPDX-License-Identifier: Apache-2.0
"""What parts of an objective have to know of a model, probed from how it noises and denoises."""

from dataclasses import dataclass

import torch

from .denoiser import Preconditioning, snr

# What each family is called in a message.
FAMILIES = {
    "eps": "eps-prediction",
    "v": "v-prediction",
    "flow": "flow",
    "edm": "EDM",
    "x0": "x0-prediction",
    "other": "of no common family",
}
ZERO_SNR = 1e-6
_PROBES = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Facts:
    """A model as objectives see it.

    Attributes:
        family: A key of ``FAMILIES``.
        is_discrete: Whether only the levels of its table exist.
        is_zero_terminal: Whether its last level is noise alone.
        sigma_data: Spread of the data in its preconditioning; 1 where it has none.
    """

    family: str
    is_discrete: bool
    is_zero_terminal: bool
    sigma_data: float = 1.0

    def __str__(self) -> str:
        return FAMILIES[self.family]


def facts(model: Preconditioning) -> Facts:
    """Probe a model."""
    family, sigma_data = _family(model)
    table = model.sigmas.cpu()
    middle = table[len(table) // 2 - 1 : len(table) // 2 + 1].log().mean().exp()[None]
    is_discrete = not torch.equal(model.nearest(middle), middle)
    is_zero_terminal = float(snr(model, table[-1:])) < ZERO_SNR
    return Facts(family, is_discrete, is_zero_terminal, sigma_data)


def _family(model: Preconditioning) -> tuple[str, float]:
    sigma = torch.tensor(_PROBES)
    zero, one = torch.zeros(len(sigma), 1), torch.ones(len(sigma), 1)
    signal = model.add_noise(sigma, zero.clone(), one).flatten()
    noise = model.add_noise(sigma, one.clone(), zero).flatten()
    out = model.combine(sigma, one, zero).float().flatten()
    skip = model.combine(sigma, zero, one).float().flatten()
    if not _near(noise, sigma):
        return "other", 1.0
    if _near(signal, 1 - sigma) and _near(skip, one[:, 0]) and _near(out, -sigma):
        return "flow", 1.0
    if not _near(signal, one[:, 0]):
        return "other", 1.0
    if _near(skip, one[:, 0]) and _near(out.abs(), sigma):
        return "eps", 1.0
    if _near(skip, zero[:, 0]) and _near(out, one[:, 0]):
        return "x0", 1.0
    # c_skip = sd^2 / (sigma^2 + sd^2) (Karras et al. 2022, Table 1), solved for sd^2.
    data = float((skip * sigma.square() / (1 - skip)).double().mean().clamp(min=0)) ** 0.5
    if _near(skip, data**2 / (sigma**2 + data**2)) and _near(
        out.abs(), sigma * data / (sigma**2 + data**2).sqrt()
    ):
        return ("edm" if float(out[0]) > 0 else "v"), round(data, 6)
    return "other", 1.0


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
