# SPDX-License-Identifier: Apache-2.0
"""Pseudo-Huber loss, rho(r) = 2 delta (sqrt(r^2 + delta^2) - delta): r^2 for small r, 2 delta |r| for large.

With a schedule delta falls as the noise rises (Khrapov et al. 2024, arXiv 2403.16728, as kohya's huber_schedule):
exponential, delta^(t / T) over the place in the model's table; snr, (1 - delta) / (1 + sigma)^2 + delta with the
noise-to-signal ratio for sigma.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, snr
from .. import METRICS

SCHEDULES = ("snr", "exponential", "constant")


@METRICS.register("huber")
@dataclass(frozen=True)
class Huber:
    """Pictures that are unlike the others pull less."""

    delta: float = option(0.1, "Error from which it grows like a line.", min=1e-6, max=1e6)
    schedule: str = option("snr", "How delta changes with the noise level.", choices=SCHEDULES)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.schedule != "constant" and self.delta > 1:
            raise ValueError(
                f"delta is {self.delta}; with schedule={self.schedule} it falls from 1 to delta, so it must be at "
                "most 1: lower it, or take schedule=constant."
            )

    def __call__(
        self, residual: torch.Tensor, sigma: torch.Tensor, denoiser: Preconditioning
    ) -> torch.Tensor:
        """2 delta r^2 / (sqrt(r^2 + delta^2) + delta), which does not cancel for small r."""
        delta = self.deltas(sigma, denoiser).to(residual.dtype)
        delta = delta.view(-1, *(1,) * (residual.ndim - 1))
        square = residual.square()
        return 2 * delta * square / ((square + delta.square()).sqrt() + delta)

    def deltas(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """delta ``[B]`` at sigma ``[B]``."""
        if self.schedule == "constant":
            return torch.full_like(sigma, self.delta)
        if self.schedule == "exponential":
            table = denoiser.sigmas.to(sigma.device)
            place = torch.searchsorted(table, sigma * (1 - 1e-5)) / len(table)
            return self.delta**place
        noise = snr(denoiser, sigma).clamp(min=1e-20).rsqrt()
        return (1 - self.delta) / (1 + noise).square() + self.delta
