# SPDX-License-Identifier: Apache-2.0
"""The one view of a model that training needs: D(x; sigma, cond), the denoised latent.

Every family (eps, v, flow, EDM) writes D = c_skip x + c_out F (Karras et al. 2022, eq. 7;
arXiv 2206.00364) with F the raw network, so that the residual of D over c_out is the residual of F.
"""

from typing import Any, Protocol

import torch


class Preconditioning(Protocol):
    """How a model noises, and makes D of its network's output. Tensors are fp32; ``sigma`` is ``[B]``."""

    @property
    def sigmas(self) -> torch.Tensor:
        """The model's own noise levels in ascending order, ``[N]``."""

    def nearest(self, sigma: torch.Tensor) -> torch.Tensor:
        """Snap ``sigma`` to the table where the model is discrete, else return it."""

    def add_noise(
        self, sigma: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor
    ) -> torch.Tensor:
        """The noised latent ``[B, ...]`` as the model's sampler makes it."""

    def combine(self, sigma: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """D from the raw network's ``output`` at the input ``x``."""


class Denoiser(Preconditioning, Protocol):
    """A diffusion model as a denoiser."""

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        """D(x; sigma, cond), ``[B, ...]``, differentiable."""


def _probe(
    denoiser: Preconditioning, sigma: torch.Tensor, output: float, x: float, dims: int
) -> torch.Tensor:
    shape = (sigma.shape[0],) + (1,) * (dims - 1)
    full = sigma.new_full
    return denoiser.combine(sigma, full(shape, output), full(shape, x)).float()


def c_out(denoiser: Preconditioning, sigma: torch.Tensor, dims: int = 4) -> torch.Tensor:
    """|dD/dF| at ``sigma`` ``[B]``, shaped ``[B, 1, ...]`` with ``dims`` dimensions."""
    return _probe(denoiser, sigma, 1.0, 0.0, dims).abs()


def c_skip(denoiser: Preconditioning, sigma: torch.Tensor, dims: int = 4) -> torch.Tensor:
    """dD/dx with F held at ``sigma`` ``[B]``, shaped ``[B, 1, ...]`` with ``dims`` dimensions."""
    return _probe(denoiser, sigma, 0.0, 1.0, dims)


def snr(denoiser: Preconditioning, sigma: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio ``[B]`` at ``sigma`` ``[B]``, probed from how the model noises."""
    shape = (sigma.shape[0], 1)
    zero, one = sigma.new_zeros(shape), sigma.new_ones(shape)
    signal = denoiser.add_noise(sigma, zero, one).square()
    noise = denoiser.add_noise(sigma, one, zero).square()
    return (signal / noise.clamp(min=1e-20)).flatten()
